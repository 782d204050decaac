"""The first pictures that `uvr demo` draws: each on disk when it is drawn, and what they show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from uvr_core.cli import main
from uvr_zoo import pictures


@pytest.mark.slow
def test_a_demo_draws_pairs_a_sheet_and_a_table(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "pictures.json").read_text())["pictures"]
    assert len(rows) == len(pictures.ASKED)
    files = {row[title]["file"] for row in rows for title in ("stock", "regulated")}
    assert {f"pictures/{path.name}" for path in (tmp_path / "pictures").iterdir()} == files
    for row, asked in zip(rows, pictures.ASKED, strict=True):
        assert set(row["located"]) == ({asked} if asked else set())
        assert row["identical"] is not bool(asked), "a picture without a concept is the stock one, bit for bit"
        assert row["prompt"] in result.stderr
    with Image.open(tmp_path / "pictures.png") as sheet:
        assert sheet.width > 6 * 2 * 64
    assert "the same picture, bit for bit" in result.stdout
    assert str(tmp_path / "pictures.png") in result.stdout
    assert "Next:" in result.stdout


@pytest.mark.slow
def test_what_was_drawn_is_on_disk_when_the_demo_is_cut(tmp_path: Path) -> None:
    drawing = pictures.draw(tmp_path)
    first = next(drawing)
    drawing.close()
    assert (first["number"], first["of"]) == (1, len(pictures.ASKED))
    assert len(json.loads((tmp_path / "pictures.json").read_text())["pictures"]) == 1
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["1-regulated.png", "1-stock.png"]
    assert (tmp_path / "pictures.png").is_file()
