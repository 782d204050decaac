"""Editing: what each term of the paper's restriction is worth, on the zoo's editing pipelines.

    python tools/benchmarks/ablation.py --out docs/figures [--count 32]

Policy `uvr` in full, then with one term off or on: attenuation off (strong = mild = 1), boost off (1), ring off (0),
noise on (alpha 0.5 on core rows, whole run); the released code's operator; and `selective` with each of its terms off.
Held-out tasks in the drawing style that the anchors never saw, seeds apart from the demo's. Writes
ablation-editing.json and ablation-editing.md; `--from` writes the page again from the JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tables import TEMPLATES, cell, compare, run

import uvr_zoo
from uvr_evaluation import Arm
from uvr_evaluation.render import render
from uvr_zoo.recipes import RECIPES
from uvr_zoo.tasks import cases, unsafe_tasks

FIRST_SEED = 730_000
VARIANTS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "uvr": ("uvr", {}),
    "uvr, attenuation off": ("uvr", {"strong": 1.0, "mild": 1.0}),
    "uvr, boost off": ("uvr", {"boost": 1.0}),
    "uvr, boost 2": ("uvr", {"boost": 2.0}),
    "uvr, ring off": ("uvr", {"ring": 0}),
    "uvr, noise on": ("uvr", {"alpha": 0.5, "startup": 0.0}),
    "uvr-released": ("uvr-released", {}),
    "selective": ("selective", {}),
    "selective, ring off": ("selective", {"ring": 0}),
    "selective, amplification on": ("selective", {"amplification": 1.0}),
    "selective, source kept": ("selective", {"source_contrast": 1e9}),
    "selective, text kept": ("selective", {"instruction_contrast": 1e9}),
}
ARMS = [Arm(title, "policy", policy, set=values) for title, (policy, values) in VARIANTS.items()]


def measure(count: int) -> dict[str, Any]:
    """{pipeline: {case: {variant: counts}}} over the zoo's editing pipelines."""
    table: dict[str, Any] = {}
    for name in (name for name, recipe in RECIPES.items() if recipe.edits):
        pipe = uvr_zoo.load(name)
        for case in cases(name):
            tasks, bank = unsafe_tasks(name, case, count, FIRST_SEED), uvr_zoo.concepts(name, case.concept)
            table.setdefault(name, {})[case.title] = compare(pipe, name, tasks, case.concept, ARMS, concepts=bank)
            for title, row in table[name][case.title].items():
                print(f"{name}, {case.title}, {title}: {cell(row)}", flush=True)
    return table


def page(table: Mapping[str, Any], count: int) -> str:
    """Markdown: per cell the erased of the shown, and the other objects kept."""
    return render(TEMPLATES / "ablation.md.j2", table=table, count=count, variants=VARIANTS)


if __name__ == "__main__":
    run(
        __doc__, measure, page, json_at="ablation-editing.json", page_at="ablation-editing.md", first_seed=FIRST_SEED,
        out=Path("docs/figures"), count=32,
    )  # fmt: skip
