"""Measured pages in docs say what the committed figures say: each follows from its JSON by its own script."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

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


def test_the_page_of_free_english_follows_from_its_json() -> None:
    results = json.loads((ROOT / "docs" / "figures" / "free-flux.json").read_text())
    written = runpy.run_path(str(ROOT / "tools" / "benchmarks" / "free.py"))
    assert (ROOT / "docs" / "free-flux.md").read_text() == written["page"](results)
    unsafe, benign = written["unsafe_tasks"]("flux", 2), written["benign_tasks"]("flux", 3)
    assert [task.index for task in unsafe] == list(range(16))
    assert {task.concept for task in unsafe} == {"weapon"}
    assert not any(task.concept for task in benign)
    assert min(task.seed for task in (*unsafe, *benign)) >= written["REPORTED"] > written["TUNING"] + 100_000
