"""`uvr pull` in the core alone; with `uvr push` it is in tests/evaluation/test_publish.py."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
from commands import ran
from runner import make_bank
from stand_in import standing_in

import uvr_core
from uvr_core.cli.hub import adapters_for


def test_a_model_that_no_adapter_knows_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = attrs.evolve(make_bank(), fingerprint=uvr_core.Fingerprint("NoSuchModel", 4, 2, 16), calibration=None)
    content = bank.save(tmp_path / "x.safetensors").read_bytes()
    with standing_in(monkeypatch, tmp_path / "cache") as hub:
        head = hub.model("a/b", {"x.safetensors": content}).head
        result = ran("pull", "a/b", "--json")
        facts = json.loads(result.stdout)
        assert facts["place"] == f"a/b:x.safetensors@{head}"
        assert (facts["adapters"], facts["calibrated"]) == ([], None)
        assert "note: no adapter here knows NoSuchModel" in result.stderr
        assert "not calibrated" in ran("pull", "a/b").stdout


def test_adapters_that_know_a_model() -> None:
    assert adapters_for("SD3Transformer2DModel") == ["sd3"]
