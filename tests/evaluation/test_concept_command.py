"""`uvr concept new` and `uvr concepts`, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import FAST, ran, uvr
from tiny import tiny_flux

import uvr_core

RECIPE = """
name = "weapon"
words = ["knife", "pistol"]
lookalikes = ["hat", "star"]
judge = "zoo"
target = 0.9

[templates]
named = ["{a} {concept} {place} , {style} style"]
benign = ["a cat {place} , {style} style"]

[slots]
place = ["on the left", "on the right", "in the middle", "at the top", "at the bottom"]
style = ["toy", "glossy"]

[counts]
collect = 2
collect_benign = 2
calibrate = 2
calibrate_benign = 2
measure = 2
measure_benign = 2
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_flux().save_pretrained(folder)
    return folder


def test_a_recipe_of_ones_own(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(RECIPE)
    out = tmp_path / "out"
    options = ("--model", checkpoint, "--recipe", file, *FAST, "--batch", 2, "--out", out)
    result = json.loads(ran("concept", "new", "weapon", *options, "--json").stdout)
    assert result["measured"]["judge"] == "zoo"
    bank = uvr_core.load_concepts(result["file"])
    assert bank.provenance["recipe"] == RECIPE
    again = ran("concept", "new", "weapon", *options)
    assert "measured on prompts of a third set" in again.stdout
    monkeypatch.setenv("UVR_CONCEPTS", str(out))
    listed = {row["name"]: row for row in json.loads(ran("concepts", "--json").stdout)["concepts"]}
    assert listed["weapon"]["measured"] == result["measured"]
    assert listed["weapon"]["model"] == "FluxTransformer2DModel"
    assert listed["flux-weapon"]["measured"] is None
    assert listed["flux-weapon"]["calibrated"]["recall"] > 0.9
    assert ran("concept", "list", "--json").stdout == ran("concepts", "--json").stdout
    assert "by zoo" in ran("concepts").stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--words", " , "), "--words: expected what prompts call it"),
        (("--words", "a", "--recipe", "b"), "not both"),
        ((), "no recipe 'waepon'"),
        (("--recipe", "none.toml"), "none.toml: no such recipe"),
        (("--words", "knife", "--masks", "word"), "no judge 'word'"),
        (("--words", "knife", "--judge", "zooo"), "unknown judge 'zooo'"),
    ],
)
def test_what_is_told_wrong_is_refused_before_anything_is_loaded(options: tuple[str, ...], message: str) -> None:
    result = uvr("concept", "new", "waepon", "--model", "no/such", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_without_a_judge_nobody_counts_what_is_erased(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(RECIPE)
    options = ("--model", checkpoint, "--recipe", file, "--judge", "none", *FAST, "--batch", 2, "--out", tmp_path / "o")
    measured = json.loads(ran("concept", "new", "weapon", *options, "--json").stdout)["measured"]
    assert measured["judge"] == "nobody"
    assert measured["erased"]["of"] == 0
    assert measured["located"]["of"] == 2
