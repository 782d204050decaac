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
