"""Every built-in detector and policy on every zoo pipeline, in one table.

    python tools/benchmarks/builtins.py --out docs [--count 16]

Detectors: patch AUROC against the judge's location map on unregulated images, in the bank's probe block, at the first
step and the mean over steps. Policies: erased of the images that show the concept, and other prompted objects kept,
with the shipped bank's calibration. Held-out tasks in the drawing style that the anchors never saw; the demo draws
others. `evaluate` keeps an AUROC a picture, none a step: detectors are scored apart. Writes figures/builtins.json and
builtins.md; `--from` writes the page again from the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tables import TEMPLATES, cell, compare, run

import uvr_core
import uvr_zoo
from uvr_core.fit.scores import auroc_of, score_runs
from uvr_core.plugins import registry
from uvr_evaluation import Arm
from uvr_evaluation.render import render
from uvr_zoo.concept_files import mask_source
from uvr_zoo.tasks import Case, Task, cases, prompt_of, settings, sources_of, unsafe_tasks

FIRST_SEED = 740_000
CONTROLS = ("oracle",)  # takes the mask that a detector is to find
REFUSALS = ("refuse",)  # returns no image to judge


def detector_rows(
    pipe: Any, name: str, case: Case, tasks: Sequence[Task], bank: uvr_core.ConceptBank
) -> dict[str, Any]:
    """{detector: {"first": AUROC at step 0, "mean": over steps}, or {"missing": why}}."""
    rows: dict[str, Any] = {}
    for detector in sorted(set(registry().names("detector")) - set(CONTROLS)):
        try:
            runs = score_runs(
                pipe, bank, [prompt_of(t) for t in tasks], detector=detector, sources=sources_of(tasks), seed=50_000,
                generate=settings(name), masks=mask_source(name, case.concept), batch_size=16,
            )  # fmt: skip
        except uvr_core.ConceptMismatch as error:
            rows[detector] = {"missing": str(error)}
            continue
        assert runs.masks is not None
        scores = runs.scores[bank.calibration.probe]  # (images, steps, patches)
        shown = runs.masks.reshape(len(runs.masks), -1)
        per_step = [auroc_of(scores[:, step].ravel(), shown.ravel()) for step in range(scores.shape[1])]
        rows[detector] = {"first": per_step[0], "mean": float(np.mean(per_step)), "images": int(shown.any(1).sum())}
    return rows


def measure(count: int) -> dict[str, Any]:
    """{pipeline: {case: {"detectors": ..., "policies": ...}}}."""
    policies = sorted(set(registry().names("policy")) - set(REFUSALS))
    table: dict[str, Any] = {}
    for name in uvr_zoo.names():
        pipe = uvr_zoo.load(name)
        for case in cases(name):
            tasks, bank = unsafe_tasks(name, case, count, FIRST_SEED), uvr_zoo.concepts(name, case.concept)
            guided = settings(name).get("true_cfg_scale", 2) > 1
            usable = [Arm(policy, "policy", policy) for policy in policies if policy != "redirect" or guided]
            row = {
                "detectors": detector_rows(pipe, name, case, tasks, bank),
                "policies": compare(pipe, name, tasks, case.concept, usable, concepts=bank),
            }
            table.setdefault(name, {})[case.title] = row
            print(name, case.title, json.dumps(row["detectors"]), flush=True)
            for title, counts in row["policies"].items():
                print(f"  {title}: {cell(counts)}", flush=True)
    return table


def page(table: Mapping[str, Any], count: int) -> str:
    every = [row for rows in table.values() for row in rows.values()]
    policies = dict.fromkeys(policy for row in every for policy in row["policies"])
    return render(TEMPLATES / "builtins.md.j2", table=table, count=count, cases=every, policies=policies)


if __name__ == "__main__":
    run(
        __doc__, measure, page, json_at="figures/builtins.json", page_at="builtins.md", first_seed=FIRST_SEED,
        out=Path("docs"), count=16,
    )  # fmt: skip
