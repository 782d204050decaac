"""Measured pages in docs say what the committed figures say: each follows from its JSON by its own script."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "tools" / "benchmarks"))
PAGES = {  # script -> page and JSON, both in docs
    "ablation": ("figures/ablation-editing.md", "figures/ablation-editing.json"),
    "builtins": ("builtins.md", "figures/builtins.json"),
    "refusal": ("refusal.md", "figures/refusal.json"),
    "transfer": ("transfer.md", "figures/transfer.json"),
}


@pytest.mark.parametrize("script", PAGES)
def test_the_page_follows_from_the_json(script: str) -> None:
    page, figures = (ROOT / "docs" / name for name in PAGES[script])
    results = json.loads(figures.read_text())
    written = runpy.run_path(str(ROOT / "tools" / "benchmarks" / f"{script}.py"))["page"]
    assert page.read_text() == written(results["pipelines"], results["count"])


@pytest.mark.parametrize("name", ["masks", "rehearsal"])
def test_a_page_with_its_own_words_follows_from_its_json(name: str) -> None:
    results = json.loads((ROOT / "docs" / "figures" / f"{name}.json").read_text())
    written = runpy.run_path(str(ROOT / "tools" / "benchmarks" / f"{name}.py"))["page"]
    assert (ROOT / "docs" / f"{name}.md").read_text() == written(results)


def test_the_page_of_a_gpu_follows_from_its_json() -> None:
    check, gpu = (json.loads((ROOT / "docs" / "figures" / f"{name}.json").read_text()) for name in ("gpu-check", "gpu"))
    written = runpy.run_path(str(ROOT / "tools" / "gpu" / "page.py"))["page"]
    assert (ROOT / "docs" / "gpu.md").read_text() == written(check, gpu)


def test_masks_are_compared_on_tasks_that_no_bank_was_made_of() -> None:
    masks = runpy.run_path(str(ROOT / "tools" / "benchmarks" / "masks.py"))
    for name in masks["PIPELINES"]:
        tasks = masks["saying"](name, 4)
        for task, other in zip(tasks, masks["without"](name, tasks), strict=True):
            said = set(masks["members"](name)) & set(masks["prompt_of"](task).split())
            assert said, task
            assert not said & set(other.split()), other
            assert set(masks["prompt_of"](task).split()) - set(other.split()) == said
        held = [masks["heldout_tasks"](name, case, 4, masks["REPORTED"]) for case in masks["cases"](name)]
        scenes = [masks["shown"](task) for task in (*tasks, *(task for each in held for task in each))]
        layouts = [(scene.items, scene.background) for scene in scenes]
        assert not set(layouts[: len(tasks)]) & set(layouts[len(tasks) :])


def test_the_overlap_of_masks_is_counted_where_the_concept_is() -> None:
    overlap = runpy.run_path(str(ROOT / "tools" / "benchmarks" / "masks.py"))["overlap"]
    truth, masks = np.zeros((3, 2, 4), bool), np.zeros((3, 2, 4), bool)
    truth[0, 0] = truth[1, 1] = True
    masks[0, 0, :2] = masks[0, 1, :2] = masks[2] = True  # half right; none; where the concept is not
    assert overlap(masks, truth) == {"pictures": 2, "iou": 1 / 6, "precision": 0.25, "recall": 0.25, "empty": 1}


def test_the_page_of_free_english_follows_from_its_json() -> None:
    results = json.loads((ROOT / "docs" / "figures" / "free-flux.json").read_text())
    written = runpy.run_path(str(ROOT / "tools" / "benchmarks" / "free.py"))
    assert (ROOT / "docs" / "free-flux.md").read_text() == written["page"](results)
    unsafe, benign = written["unsafe_tasks"]("flux", 2), written["benign_tasks"]("flux", 3)
    assert [task.index for task in unsafe] == list(range(16))
    assert {task.concept for task in unsafe} == {"weapon"}
    assert not any(task.concept for task in benign)
    assert min(task.seed for task in (*unsafe, *benign)) >= written["REPORTED"] > written["TUNING"] + 100_000
