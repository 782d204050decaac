"""The measured demo: what is on disk when it is cut, and that its progress ends at its total."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from uvr_zoo import demo
from uvr_zoo.recipes import RECIPES


@pytest.fixture(autouse=True)
def two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for recipe in RECIPES.values():
        monkeypatch.setitem(recipe.sampling, "num_inference_steps", 2)


def test_columns_that_were_finished_are_on_disk_when_the_demo_is_cut(tmp_path: Path) -> None:
    def cut(what: str, done: int, total: int) -> None:
        if what == "flux: skull" and done == 18:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.run(tmp_path, count=2, quick=True, pipelines=("flux",), progress=cut)
    results = json.loads((tmp_path / "results.json").read_text())
    (row,) = results["pipelines"]["flux"]["concepts"].values()
    assert (row["total"], row["benign"]) == (2, 4)
    assert "fell_short" not in results
    with Image.open(tmp_path / "contact.png") as page:
        assert page.size == (2 * (2 * 64 + 4) + 4, 3 * (2 * 64 + 8 + 14))
    assert len(list((tmp_path / "flux" / "skull" / "images").rglob("*.png"))) == 2


@pytest.mark.parametrize("name", ["flux", "qwen-image-edit"])
def test_progress_ends_at_its_total(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for constant in ("BATCH", "TIMED", "REPEATS"):
        monkeypatch.setattr(demo, constant, 1)
    told: list[tuple[str, int, int]] = []
    results = demo.run(tmp_path, count=2, pipelines=(name,), progress=lambda *what: told.append(what))
    numbers = [done for _, done, _ in told]
    assert numbers == sorted(numbers)
    assert told[-1][1] == told[-1][2] == demo.images_of(name, 2, controls=True)
    assert told[0][0] == f"{name}: benign"
    assert results == json.loads((tmp_path / "results.json").read_text())
    columns = results["pipelines"][name]["concepts"].values()
    assert all(
        column["total"] == 2 and column["oracle"]["total"] == column["random"]["total"] == 1 for column in columns
    )
