"""A pipeline as it ships: gates one by one, gone on with where they were cut, and what it draws as it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from uvr_zoo import storage
from uvr_zoo.freeform import pipelines, publish
from uvr_zoo.pipelines import DATA

TRAINING = {"steps": 1, "minutes": 1, "loss": 0.5}


def test_a_pipeline_is_written_whole_and_gates_that_are_done_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tuple(publish.Asked(count, prompts=3) for count in (1, 2))
    monkeypatch.setattr(publish, "GATES", few)
    monkeypatch.setattr(publish, "PROMPTS", ("a dagger in the snow", "a violin", ""))
    monkeypatch.setitem(pipelines.SAMPLING["flux"], "num_inference_steps", 2)
    first = storage.load(pipelines.diffusers.FluxTransformer2DModel, DATA / "flux" / "transformer")
    storage.save(first, tmp_path / "run")
    folder = publish.publish("flux", tmp_path / "run", tmp_path / "data", TRAINING)
    card = json.loads((folder / "card.json").read_text())
    assert list(card["gates"]) == ["1 by name, place none", "2 by name, place none"]
    for gate in card["gates"].values():
        assert gate["second"]["prompts"] == 3
        assert gate["second"]["of_the_rendered_scenes"] >= 2
    with Image.open(folder / "samples.webp") as sheet:
        assert sheet.size == (8 * 96, 96)
    del card["gates"]["2 by name, place none"]
    card["gates"]["1 by name, place none"]["second"]["prompts"] = 1234
    (folder / "card.json").write_text(json.dumps(card))
    publish.publish("flux", folder / "transformer", tmp_path / "data", TRAINING)
    again = json.loads((folder / "card.json").read_text())["gates"]
    assert [gate["second"]["prompts"] for gate in again.values()] == [1234, 3]
    publish.publish("flux", folder / "transformer", tmp_path / "data", {**TRAINING, "steps": 2})
    anew = json.loads((folder / "card.json").read_text())["gates"]
    assert [gate["second"]["prompts"] for gate in anew.values()] == [3, 3]

    pipe = pipelines.load_free("flux", folder / "transformer")
    weights = pipe.transformer.state_dict()
    assert all(torch.allclose(weights[k], v, atol=0.02 * float(v.abs().max())) for k, v in first.state_dict().items())


def test_an_editing_pipeline_is_asked_for_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "EDIT_GATES", (publish.AskedEdits("every kind", prompts=3),))
    monkeypatch.setattr(publish, "INSTRUCTIONS", ("add a dagger", "remove the {}"))
    monkeypatch.setitem(pipelines.SAMPLING["flux-kontext"], "num_inference_steps", 1)
    first = storage.load(pipelines.diffusers.FluxTransformer2DModel, DATA / "flux-kontext" / "transformer")
    storage.save(first, tmp_path / "run")
    folder = publish.publish("flux-kontext", tmp_path / "run", tmp_path / "data", TRAINING)
    gate = json.loads((folder / "card.json").read_text())["gates"]["every kind"]
    assert gate["second"]["edits"] == 3
    assert gate["second"]["carried_out_of_the_rendered_scenes"] >= 2
    with Image.open(folder / "samples.webp") as sheet:
        assert sheet.size == (8 * 96, 96)
