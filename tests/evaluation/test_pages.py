"""docs/results.md is what the committed rows give."""

from __future__ import annotations

import json
from pathlib import Path

from uvr_evaluation import pages
from uvr_evaluation.rows import read_rows
from uvr_evaluation.summary import summarise


def test_the_page_of_results_is_what_the_committed_rows_give() -> None:
    """docs/results.md from its folders, and every summary from its rows."""
    docs = Path(__file__).parents[2] / "docs"
    folders = [docs / "results" / name for name in ("flux", "sd3", "flux-kontext", "qwen-image", "qwen-image-edit")]
    assert pages.page(folders) == (docs / "results.md").read_text("utf-8")
    for folder in folders:
        config, summary = pages.load(folder)
        assert json.loads(json.dumps(summarise(read_rows(folder), config))) == summary
