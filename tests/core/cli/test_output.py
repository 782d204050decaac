"""All of a result is in its folder, or nothing is."""

from __future__ import annotations

import json
import os

import pytest
import torch
from commands import FAST, PROBE, refused, registered
from tiny import WIDTH

from uvr_core.cli import output
from uvr_core.concepts import ConceptBank, Fingerprint
from uvr_core.errors import UVRError
from uvr_core.files import to_json


def test_unwritable_output_folder(checkpoint, concept, tmp_path):
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        line = refused("generate", checkpoint, "--prompt", "a cat", *FAST, "--out", folder)
        assert f"{folder}: cannot write there" in line
    (tmp_path / "p.txt").write_text("a cat\n")
    common = ("--masks", "zoo:knife", "--prompts", tmp_path / "p.txt")
    for file in (tmp_path / "file" / "x.safetensors", tmp_path / "nowhere" / "x.safetensors", tmp_path):
        assert str(tmp_path) in refused("collect", checkpoint, "weapon", *common, "--out", file)
    sets = ("--unsafe", tmp_path / "p.txt", "--benign", tmp_path / "p.txt")
    assert "file" in refused("calibrate", checkpoint, concept, *sets, "--out", tmp_path / "file" / "x.safetensors")
    assert "file" in refused("demo", "--out", tmp_path / "file" / "demo")
    (tmp_path / "p.txt").unlink()
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_that_fails_halfway_leaves_nothing(checkpoint, out):
    class Failing:
        name = "failing"

        def scores(self, features, sigma, bank, probe):
            raise ValueError("halfway")

    tensors = {f"anchors/{PROBE}": torch.zeros(1, WIDTH)}
    bank = ConceptBank("x", Fingerprint("FluxTransformer2DModel", 4, 2, 16), tensors)
    path = bank.save(checkpoint.parent / "x.safetensors")
    with registered(uvr_detectors={"failing": Failing}):
        arguments = ("--detector", "failing", "--threshold", 0, "--concept", path)
        assert "halfway" in refused("generate", checkpoint, "--prompt", "a cat", *FAST, *arguments, "--out", out)
    assert not out.parent.exists()


def test_json_says_no_infinities():
    assert json.loads(to_json({"a": [float("-inf"), float("nan"), 1.5]})) == {"a": [None, None, 1.5]}


def test_output_folder_keeps_what_was_there(tmp_path):
    (tmp_path / "mine").write_text("x")
    interrupted = output.folder(tmp_path)
    (interrupted.__enter__() / "half").write_text("x")
    assert not interrupted.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert os.listdir(tmp_path) == ["mine"]
    with output.folder(tmp_path) as stage:
        (stage / output.REPORT).write_text("{}")
    assert sorted(os.listdir(tmp_path)) == ["mine", output.REPORT]
    with pytest.raises(UVRError, match="holds a run"), output.folder(tmp_path):
        pass
