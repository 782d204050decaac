"""`uvr collect` and `uvr calibrate`."""

from __future__ import annotations

import json

from commands import FAST, PROBE, Pointer, ran, registered

import uvr_core


def test_collect_then_calibrate_then_generate(checkpoint, prompts, tmp_path, out):
    bank, tuned = tmp_path / "knife.safetensors", tmp_path / "tuned.safetensors"
    common = (*FAST, "--batch", 2)
    with registered(uvr_judges={"pointer": Pointer}):
        masks = ("--masks", "pointer:knife")
        collected = ran(
            "collect", checkpoint, "weapon", "--prompts", prompts, "--benign", prompts, *masks, *common, "--out", bank
        )
        assert "seen in 3 of 3 images" in collected.stdout
        sets = ("--unsafe", prompts, "--benign", prompts, "--max-false-positive", 0.9)
        result = ran("calibrate", checkpoint, bank, *sets, *masks, *common, "--out", tuned, "--json")
    assert json.loads(result.stdout)["measured"]["recall"] > 0
    collected_bank = uvr_core.load_concepts(bank)
    assert collected_bank.provenance["mask_source"] == "judge pointer: knife"
    assert collected_bank.provenance["generate"]["num_inference_steps"] == 2
    assert uvr_core.load_concepts(tuned).calibration.detector == "contrast"
    ran("generate", checkpoint, "--prompts", prompts, "--concept", tuned, *common, "--out", out)


def test_calibrate_learns_the_text_where_it_is_asked_to(checkpoint, bank, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("uvr_core.fit.carriers.FEEDS", 1.0)  # a random model's contrasts lie about 1
    path, tuned = bank.save(tmp_path / "knife.safetensors"), tmp_path / "tuned.safetensors"
    asked = ("calibrate", checkpoint, path, "--unsafe", prompts, "--benign", prompts, "--text", "--out", tuned)
    assert "--masks" in ran(*asked, *FAST, code=2).stderr
    with registered(uvr_judges={"pointer": Pointer}):
        more = ("--masks", "pointer:knife", "--max-false-positive", 0.9, "--detector", "anchor", "--json")
        result = ran(*asked, *more, *FAST)
    text = uvr_core.load_concepts(tuned).text
    assert json.loads(result.stdout)["text"]["measured"] == text.measured
    assert text.measured["carrying"][1] > 0


def test_calibrate_that_locates_nothing_falls_short(checkpoint, bank, prompts, tmp_path):
    bank.tensors[f"anchors/{PROBE}"].zero_()
    path, tuned = bank.save(tmp_path / "zero.safetensors"), tmp_path / "tuned.safetensors"
    sets = ("--unsafe", prompts, "--benign", prompts, "--detector", "anchor")
    result = ran("calibrate", checkpoint, path, *sets, *FAST, "--out", tuned, code=1)
    assert "nothing written" in result.stderr
    assert not tuned.exists()


def test_collect_says_that_seeds_are_not_used(checkpoint, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a knife", "seed": 4}\n')
    with registered(uvr_judges={"pointer": Pointer}):
        arguments = ("collect", checkpoint, "w", "--prompts", prompts, "--masks", "pointer:knife", *FAST)
        assert "seeds in" in ran(*arguments, "--out", tmp_path / "w.safetensors").stderr
