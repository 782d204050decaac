"""What judges and prompts call a concept: the file, and labels that no judge reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from judged import FAST, uvr

from uvr_core.errors import UVRError
from uvr_evaluation import terms


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[weapon\n", "not TOML"),
        ("weapon = 3\n", "expected a table"),
        ("[weapon]\nlabel = ['x']\n", "unknown key 'label'"),
        ("[weapon]\nlabels = []\n", "expected a list of text"),
    ],
)
def test_bad_subjects(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "subjects.toml"
    path.write_text(text)
    with pytest.raises(UVRError, match=message):
        terms.read_subjects(path)


def test_labels_that_no_judge_reports(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "subjects.toml").write_text('[weapon]\nlabels = ["wram"]\n')
    line = ("eval", checkpoint, "--prompts", prompts, "--judge", "shade", *FAST, "--out", tmp_path / "out")
    assert "did you mean 'warm'?" in uvr(*line, code=2).stderr
