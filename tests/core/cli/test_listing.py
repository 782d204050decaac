"""`uvr plugins`, `uvr adapters` and `uvr concepts`."""

from __future__ import annotations

import json

import attrs
from commands import ran, registered

import uvr_core


def test_plugins_json():
    data = json.loads(ran("plugins", "--json").stdout)
    origins = {plugin["name"]: plugin for plugin in data["plugins"]}
    assert origins["builtin-adapters"]["status"] == "ok"
    assert origins["builtin-adapters"]["distribution"] == "uvr-core"
    assert origins["builtin-plugins"]["hooks"] == [
        "uvr_baselines",
        "uvr_detectors",
        "uvr_judges",
        "uvr_policies",
        "uvr_recipes",
    ]
    evaluation = ("concept", "eval", "judge", "prompt-sets", "push")
    brought = {"analyze": "analysis", "demo": "zoo", "zoo": "zoo", **dict.fromkeys(evaluation, "evaluation")}
    assert data["names"]["command"] == brought
    assert "uvr" in data["names"]["policy"]


def test_plugins_and_adapters_print_tables():
    assert "builtin-adapters" in ran("plugins").stdout
    assert "longcat-image" in ran("adapters").stdout


def test_adapters_json():
    rows = json.loads(ran("adapters", "--json").stdout)["adapters"]
    (flux,) = [row for row in rows if row["name"] == "flux"]
    assert flux["model"] == "FluxTransformer2DModel"
    assert flux["plugin"] == "builtin-adapters"


def test_two_plugins_that_claim_one_name_are_reported():
    with registered(uvr_policies={"uvr": "elsewhere:Uvr"}):
        result = ran("plugins", "--json", code=1)
    assert "'uvr'" in json.loads(result.stdout)["clashes"][0]
    assert len(result.stderr.splitlines()) == 1


def test_concepts_are_listed_with_what_they_were_measured_at(tmp_path, monkeypatch):
    monkeypatch.setenv("UVR_CONCEPTS", str(tmp_path))
    shipped = uvr_core.load_concepts(uvr_core.plugins.registry().get("concept", "flux-weapon"))
    measured = {"judge": "zoo", "erased": {"hits": 30, "of": 32}, "false_located": {"hits": 1, "of": 64}}
    attrs.evolve(shipped, provenance={"measured": measured}).save(tmp_path / "mine.safetensors")
    attrs.evolve(shipped, calibration=None, provenance={"measured": "well"}).save(tmp_path / "odd.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"no")
    result = ran("concepts", "--json")
    rows = {row["name"]: row for row in json.loads(result.stdout)["concepts"]}
    assert rows["mine"]["measured"] == measured
    assert rows["flux-weapon"]["calibrated"] == shipped.calibration.measured
    assert "torn" not in rows
    assert "torn.safetensors" in result.stderr
    text = ran("concepts").stdout
    assert "30/32" in text.replace("\n", "")
    assert "?" in text
