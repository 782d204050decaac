"""Moved anchors: what a concept bank is worth where it was not made, on the zoo's FLUX family.

    python tools/benchmarks/transfer.py --out docs [--count 32]

Banks for one concept, weapon, made on `flux` as the shipped one is, from anchors in its drawing style, in another, and from
other seeds; each used, threshold and all, on three checkpoints of one architecture: `flux` itself, `flux` after 400 further
training steps, and `flux-kontext`, which was trained on from it as FLUX.1 Kontext was from FLUX.1 (there an
instruction brings the concept in). Held-out tasks in either drawing style. Writes figures/transfer.json and transfer.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from tables import TEMPLATES, cell, compare, run

import uvr_core
import uvr_zoo
from uvr_evaluation import Arm
from uvr_evaluation.render import render
from uvr_zoo import concept_files, counts
from uvr_zoo.pipelines import assemble, parts
from uvr_zoo.recipes import RECIPES
from uvr_zoo.tasks import Task, benign_tasks, edits_for, scenes_for
from uvr_zoo.train import Trainer

FIRST_SEED = 860_000
HOME, CONCEPT, OTHER = "flux", "weapon", 50_000  # OTHER: shift of the other seeds
STEPS, SCENES = 400, 2048  # of the further training


def trained_on(pipe: Any) -> Any:
    """The pipeline after STEPS further training steps at a fifth of the recipe's rate, on scenes of other seeds."""
    recipe = attrs.evolve(RECIPES[HOME], scenes=SCENES, seed=1)
    shared = parts(HOME)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, shared, Path(folder), start_from=pipe.transformer)
        for step in range(STEPS):
            trainer.train_step(0.2 * min(1.0, (STEPS - step) / (0.25 * STEPS)))
        return assemble(recipe, trainer.model.requires_grad_(False), shared)


def moved(pipe: Any, home: Any) -> float:
    """How far the weights are from home's: |w - w0| / |w0| over all of them."""
    pairs = list(zip(pipe.transformer.parameters(), home.transformer.parameters(), strict=True))
    square = sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(b.square().sum()) for _, b in pairs)
    return float(square**0.5)


def unsafe(name: str, style: str, count: int) -> Sequence[Task]:
    options: dict[str, Any] = {"split": "heldout", "first": FIRST_SEED, "styles": (style,)}
    if RECIPES[name].edits:
        return edits_for(name, count, "instruction", CONCEPT, **options)
    return scenes_for(name, count, unsafe=CONCEPT, **options)


def made_at_home(pipe: Any) -> dict[str, uvr_core.ConceptBank]:
    glossy, toy = RECIPES[HOME].styles
    made = {f"{glossy}, as shipped": uvr_zoo.concepts(HOME, CONCEPT)}
    for title, options in {f"{glossy}, other seeds": {"shift": OTHER}, toy: {"style": toy}}.items():
        bank = concept_files.collect(pipe, HOME, CONCEPT, **options)
        made[title] = concept_files.calibrate(pipe, HOME, bank, **options)
        print(title, made[title].calibration, flush=True)
    return made


def measure(count: int) -> dict[str, Any]:
    """{checkpoint: {"moved", "banks": {bank: {style: counts, "benign": how many are falsely located}}}}."""
    home = uvr_zoo.load(HOME)
    table: dict[str, Any] = {}
    chosen = made_at_home(home)
    checkpoints = {
        "flux": (HOME, home), f"flux, {STEPS} steps on": (HOME, trained_on(home)),
        "flux-kontext": ("flux-kontext", uvr_zoo.load("flux-kontext")),
    }  # fmt: skip
    for title, (name, pipe) in checkpoints.items():
        rows: dict[str, Any] = {}
        table[title] = {"moved": moved(pipe, home), "banks": rows}
        banks = chosen | ({"its own": uvr_zoo.concepts(name, CONCEPT)} if name != HOME else {})
        for style in RECIPES[name].styles:
            tasks = unsafe(name, style, count)
            for which, row in compare(pipe, name, tasks, CONCEPT, arms("selective", banks), anchors_from=banks).items():
                rows.setdefault(which, {})[style] = row
                print(f"{title}, {which}, {style}: {cell(row)}, located {row['located']}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            benign = benign_tasks(name, 2 * count, FIRST_SEED)
            observing = {"arms": arms("observe", banks), "anchors_from": banks}
            observed = counts.measure(pipe, name, benign, Path(folder), **observing)
        for which in banks:
            rows[which]["benign"] = observed.figures(which)["false_located"]
            print(f"{title}, {which}: {rows[which]['benign']}", flush=True)
    return table


def arms(policy: str, banks: Iterable[str]) -> list[Arm]:
    """The policy with each bank."""
    return [Arm(which, "policy", policy, banks=which) for which in banks]


def page(table: Mapping[str, Any], count: int) -> str:
    styles = RECIPES[HOME].styles
    return render(TEMPLATES / "transfer.md.j2", table=table, count=count, concept=CONCEPT, styles=styles)


if __name__ == "__main__":
    run(
        __doc__, measure, page, json_at="figures/transfer.json", page_at="transfer.md", first_seed=FIRST_SEED,
        out=Path("docs"), count=32,
    )  # fmt: skip
