"""`uvr concept rename` and `uvr concept merge`, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

from commands import ran, refused
from runner import make_bank

import uvr_core


def test_renamed_in_place_or_beside(tmp_path: Path) -> None:
    file = make_bank("knife").save(tmp_path / "x.safetensors")
    other = tmp_path / "y.safetensors"
    assert "weapon, was knife" in ran("concept", "rename", file, "weapon", "--out", other).stdout
    assert [uvr_core.load_concepts(path).name for path in (file, other)] == ["knife", "weapon"]
    ran("concept", "rename", file, "blade")
    assert uvr_core.load_concepts(file).name == "blade"
    assert uvr_core.load_concepts(file).calibration == make_bank().calibration
    assert "name" in refused("concept", "rename", file, "")


def test_merged(tmp_path: Path) -> None:
    files = [make_bank(name).save(tmp_path / f"{name}.safetensors") for name in ("a", "b")]
    out = tmp_path / "both.safetensors"
    facts = json.loads(ran("concept", "merge", *files, "--name", "both", "--out", out, "--json").stdout)
    assert len(facts["merged_from"]) == 2
    assert uvr_core.load_concepts(out).calibration is None
    assert "two concept files or more" in refused("concept", "merge", files[0], "--name", "x", "--out", out)
    assert "no such concept file" in refused("concept", "merge", *files, "none", "--name", "x", "--out", out)
