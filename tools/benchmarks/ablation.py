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

import attrs
from tables import TEMPLATES, cell, run

import uvr_zoo
from uvr_evaluation.render import render
from uvr_plugins.policies import Selective, Uvr, UvrReleased
from uvr_zoo.counts import compare
from uvr_zoo.recipes import RECIPES
from uvr_zoo.tasks import cases

FIRST_SEED = 730_000
PAPER, OURS = Uvr(), Selective()
VARIANTS: Mapping[str, Any] = {
    "uvr": PAPER,
    "uvr, attenuation off": attrs.evolve(PAPER, strong=1.0, mild=1.0),
    "uvr, boost off": attrs.evolve(PAPER, boost=1.0),
    "uvr, boost 2": attrs.evolve(PAPER, boost=2.0),
    "uvr, ring off": attrs.evolve(PAPER, ring=0),
    "uvr, noise on": attrs.evolve(PAPER, alpha=0.5, startup=0.0),
    "uvr-released": UvrReleased(),
    "selective": OURS,
    "selective, ring off": attrs.evolve(OURS, ring=0),
    "selective, amplification on": attrs.evolve(OURS, amplification=1.0),
    "selective, source kept": attrs.evolve(OURS, source_contrast=1e9),
    "selective, text kept": attrs.evolve(OURS, instruction_contrast=1e9),
}


def measure(count: int) -> dict[str, Any]:
    """{pipeline: {case: {variant: counts}}} over the zoo's editing pipelines."""
    table: dict[str, Any] = {}
    for name in (name for name, recipe in RECIPES.items() if recipe.edits):
        pipe = uvr_zoo.load(name)
        for case in cases(name):
            table.setdefault(name, {})[case.title] = compare(pipe, name, case, VARIANTS, count, FIRST_SEED)
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
