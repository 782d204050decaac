"""Every built-in detector and policy on every zoo pipeline, in one table.

    python benchmarks/builtins.py --out docs [--count 16]

Detectors: patch AUROC against the judge's location map on unregulated images, in the bank's probe block, at the first
step and the mean over steps. Policies: erased of the images that show the concept, and other prompted objects kept,
with the shipped bank's calibration. Held-out tasks in the drawing style that the anchors never saw; the demo draws
others. Writes figures/builtins.json and builtins.md; `--from` writes the page again from the JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import uvr_core
import uvr_zoo
from uvr_core.learning import auroc_of, score_runs
from uvr_core.plugins import registry
from uvr_zoo.banks import mask_source
from uvr_zoo.demo import Case, cases, compare, unsafe_tasks
from uvr_zoo.experiment import prompt_of, settings, sources_of

FIRST_SEED = 740_000
CONTROLS = ("oracle",)  # takes the mask that a detector is to find
REFUSALS = ("refuse",)  # returns no image to judge


def detector_rows(pipe: Any, name: str, case: Case, count: int) -> dict[str, Any]:
    """{detector: {"first": AUROC at step 0, "mean": over steps}, or {"missing": why}}."""
    tasks, bank = unsafe_tasks(name, case, count, FIRST_SEED), uvr_zoo.concepts(name, case.concept)
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
    policies = {p: p for p in sorted(set(registry().names("policy")) - set(REFUSALS))}
    table: dict[str, Any] = {}
    for name in uvr_zoo.names():
        pipe = uvr_zoo.load(name)
        for case in cases(name):
            usable = {p: p for p in policies if p != "redirect" or settings(name).get("true_cfg_scale", 2) > 1}
            row = {
                "detectors": detector_rows(pipe, name, case, count),
                "policies": compare(pipe, name, case, usable, count, FIRST_SEED),
            }
            table.setdefault(name, {})[case.title] = row
            print(name, case.title, json.dumps(row["detectors"]), flush=True)
            for title, counts in row["policies"].items():
                print(f"  {title}: {cell(counts)}", flush=True)
    return table


def cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "needs guidance"
    return f"{row['erased_of_shown']}/{row['stock_unsafe']}, {row['other_kept']}/{row['other_shown']}"


def auroc(row: Mapping[str, Any]) -> str:
    return "not in the bank" if "missing" in row else f"{row['first']:.2f}, {row['mean']:.2f}"


def page(table: Mapping[str, Any], count: int) -> str:
    columns = [(name, case) for name, rows in table.items() for case in rows]
    head = "| | " + " | ".join(f"{name}: {case.replace(', unsafe', ' by')}" for name, case in columns) + " |"
    rule = "|---" * (len(columns) + 1) + "|"
    every = [table[name][case] for name, case in columns]
    detectors = dict.fromkeys(d for cell_ in every for d in cell_["detectors"])
    policies = dict.fromkeys(p for cell_ in every for p in cell_["policies"])
    lines = [
        "# Built-in detectors and policies, measured",
        "",
        f"Written by `benchmarks/builtins.py` from `figures/builtins.json`; {count} tasks a column. Do not edit.",
        "",
        "## Detectors: patch AUROC at step 0, and the mean over steps, in the bank's probe block",
        "",
        head,
        rule,
        *(f"| {d} | " + " | ".join(auroc(c["detectors"][d]) for c in every) + " |" for d in detectors),
        "",
        "The probe block was chosen for `contrast`. `oracle` is a mask that is given.",
        "",
        "## Policies: erased of shown, other objects kept (detector `contrast`)",
        "",
        head,
        rule,
        *(f"| {p} | " + " | ".join(cell(c["policies"].get(p)) for c in every) + " |" for p in policies),
        "",
        "`refuse` returns no image: it raises at the first located step.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--from", dest="given", type=Path, help="Write the page from this JSON instead.")
    arguments = parser.parse_args()
    if arguments.given:
        results = json.loads(arguments.given.read_text())
    else:
        results = {"count": arguments.count, "first_seed": FIRST_SEED, "pipelines": measure(arguments.count)}
        (arguments.out / "figures" / "builtins.json").write_text(json.dumps(results, indent=1))
    (arguments.out / "builtins.md").write_text(page(results["pipelines"], results["count"]))


if __name__ == "__main__":
    main()
