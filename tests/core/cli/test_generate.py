"""`uvr generate` and `uvr edit`: what they draw, write and refuse."""

from __future__ import annotations

import json
import subprocess
import sys

import attrs
import numpy as np
import torch
from commands import FAST, PROBE, ran, refused, registered
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import tiny_flux

from uvr_core.concepts import Fingerprint


def test_generate_observes_without_concepts(checkpoint, out):
    arguments = ("generate", checkpoint, "--prompt", "a cat", "--prompt", "a dog", "--seed", 7, *FAST)
    result = ran(*arguments, "--out", out, "--json")
    assert "only observes" in result.stderr
    report = json.loads((out / "report.json").read_text())
    assert json.loads(result.stdout) == report
    assert sorted(path.name for path in out.iterdir()) == ["0000.png", "0001.png", "report.json"]
    assert [(i["file"], i["prompt"], i["seed"]) for i in report["images"]] == [
        ("0000.png", "a cat", 7),
        ("0001.png", "a dog", 8),
    ]
    assert {image["posture"] for image in report["images"]} == {"observe"}
    assert report["taps"] == 4
    assert report["settings"]["call"] == {"num_inference_steps": 2, "width": 64, "height": 64}
    assert report["settings"]["dtype"] == "float32"
    assert report["versions"]["torch"] == torch.__version__
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    expected = tiny_flux()(["a cat", "a dog"], num_inference_steps=2, generator=generators).images
    for number, picture in enumerate(expected):
        with Image.open(out / f"000{number}.png") as image:
            assert np.array_equal(np.asarray(image), np.asarray(picture))


def test_true_guidance_runs_two_verified_passes(checkpoint, out):
    arguments = ("generate", checkpoint, "--prompt", "a cat", "--prompt", "a dog", "--true-cfg", 3, *FAST)
    ran(*arguments, "--out", out)
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["call"]["true_cfg_scale"] == 3
    assert report["settings"]["call"]["negative_prompt"] == ""
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    expected = tiny_flux()(
        ["a cat", "a dog"], negative_prompt="", true_cfg_scale=3.0, num_inference_steps=2, generator=generators
    ).images
    single = tiny_flux()(["a cat", "a dog"], num_inference_steps=2, generator=generators).images
    for number, picture in enumerate(expected):
        with Image.open(out / f"000{number}.png") as image:
            # A loaded checkpoint's tensors lie elsewhere in memory: sums may round differently in the last bit.
            assert np.abs(np.asarray(image, int) - np.asarray(picture, int)).max() <= 1
            assert np.abs(np.asarray(image, int) - np.asarray(single[number], int)).max() > 1


def test_generate_in_a_fresh_process_says_only_what_matters(checkpoint, out):
    code = "from uvr_core.cli import main; main()"
    command = [sys.executable, "-c", code, "generate", checkpoint, "--prompt", "a cat", *FAST, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("uvr: loading ", "uvr: generating: "))]
    assert lines == ["uvr: note: no --concept given: this run only observes, nothing is regulated"]
    assert (out / "report.json").exists()


def test_generate_regulates_and_reports(checkpoint, concept, out, tmp_path):
    prompts = tmp_path / "prompts.csv"
    prompts.write_text('prompt,seed\n"a cat, a dog",3\na [red] hat,\na fish,5\n')
    common = ("generate", checkpoint, "--prompts", prompts, *FAST, "--batch", 2)
    ran(*common, "--out", tmp_path / "stock")
    result = ran(*common, "--concept", concept, "--threshold=-1000", "--out", out)
    assert "weapon: located at step 0, 64 patches, 2 of 2 steps regulated" in result.stdout
    assert result.stderr == ""
    report = json.loads((out / "report.json").read_text())
    assert [image["seed"] for image in report["images"]] == [3, 1, 5]
    for image in report["images"]:
        (finding,) = image["findings"]
        assert (image["posture"], finding["located"], finding["steps_regulated"]) == ("regulate", True, 2)
        with Image.open(out / image["file"]) as regulated, Image.open(tmp_path / "stock" / image["file"]) as stock:
            assert not np.array_equal(np.asarray(regulated), np.asarray(stock))
    assert ran("report", out).stdout.splitlines() == result.stdout.splitlines()[:-1]
    assert json.loads(ran("report", out / "report.json", "--json").stdout) == report


def test_generate_finds_concepts_by_name(checkpoint, concept, out, monkeypatch):
    monkeypatch.setenv("UVR_CONCEPTS", str(concept.parent))
    arguments = ("--concept", "weapon", "--threshold", 1e6, "--policy", "observe")
    ran("generate", checkpoint, "--prompt", "a cat", *FAST, *arguments, "--out", out)
    (image,) = json.loads((out / "report.json").read_text())["images"]
    assert image["posture"] == "observe"
    assert not image["findings"][0]["located"]


def test_generate_takes_a_plugin_model_and_size(out):
    with registered(uvr_models={"toy": lambda name: {"flux": tiny_flux}[name]()}):
        ran("generate", "toy:flux", "--prompt", "a cat", *FAST, "--size", "32x48", "--max-tokens", 16, "--out", out)
        assert "KeyError" in refused("generate", "toy:none", "--prompt", "a cat", "--out", out.with_name("other"))
    with Image.open(out / "0000.png") as image:
        assert image.size == (32, 48)


def test_generate_keeps_an_earlier_run(checkpoint, out):
    arguments = ("generate", checkpoint, "--prompt", "a cat", *FAST, "--out", out)
    ran(*arguments)
    before = (out / "report.json").read_bytes()
    assert "--overwrite" in refused(*arguments)
    assert (out / "report.json").read_bytes() == before
    ran(*arguments, "--overwrite")


def test_concept_file_truncated(generate, concept):
    for size in (0, 5, 100, concept.stat().st_size - 4):
        concept.write_bytes(concept.read_bytes()[:size])
        assert "not a whole safetensors file" in generate("--concept", concept)


def test_concept_file_of_another_schema(generate, concept):
    save_file(load_file(concept), concept, {"schema": "uvr.concept/99"})
    line = generate("--concept", concept)
    assert "'uvr.concept/4'" in line
    assert "'uvr.concept/99'" in line


def test_concept_of_another_model(generate, bank, concept):
    attrs.evolve(bank, fingerprint=Fingerprint("SD3Transformer2DModel", 24, 2, 16)).save(concept)
    line = generate("--concept", concept, "--threshold", 0)
    assert "made for another model" in line
    assert "SD3Transformer2DModel" in line


def test_concept_with_nan_anchors(generate, bank, concept):
    bank.tensors[f"anchors/{PROBE}"][0, 0] = float("nan")
    bank.save(concept)
    assert "NaN" in generate("--concept", concept)


def test_concept_that_is_not_calibrated(generate, concept):
    assert "uvr calibrate" in generate("--concept", concept)


def test_unknown_concept(generate, tmp_path, monkeypatch):
    monkeypatch.delenv("UVR_CONCEPTS", raising=False)
    assert "UVR_CONCEPTS" in generate("--concept", "wapon")
    monkeypatch.setenv("UVR_CONCEPTS", str(tmp_path))
    assert "wapon" in generate("--concept", "wapon")


def test_threshold_that_is_no_number(generate, concept):
    assert "--threshold" in generate("--concept", concept, "--threshold", "nan")


def test_edit_says_what_is_missing_or_unreadable(tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    common = ("--instruction", "add a hat", "--out", tmp_path / "out")
    assert "--image FILE" in refused("edit", "zoo:flux-kontext", *common)
    assert "not a picture that can be read" in refused("edit", "zoo:flux-kontext", "--image", text, *common)
    assert not (tmp_path / "out").exists()


def test_edit_regulates_and_reports(tmp_path):
    from PIL import Image

    Image.new("RGB", (80, 80), (120, 160, 220)).save(tmp_path / "sky.png")
    out = tmp_path / "out"
    ran(
        "edit", "zoo:flux-kontext", "--image", tmp_path / "sky.png", "--instruction", "add a hat on the left",
        "--instruction", "change the background to snow", "--concept", "flux-kontext-weapon", "--size", "64x64",
        "--steps", 2, "--out", out,
    )  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert [entry["posture"] for entry in report["images"]] == ["regulate", "regulate"]
    assert Image.open(out / "0001.png").size == (64, 64)
