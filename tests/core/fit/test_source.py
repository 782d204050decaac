"""calibrate_source: its budget holds on its own pictures, and the engine sees what it saw."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
from rig import EDITING, Rig

import uvr_core
from uvr_core import Calibration, SourceLook, UnsupportedRuntime, UVRError, calibrate_source, load_concepts
from uvr_core.engine.readings import source_features
from uvr_core.fit.source import NEUTRAL

SIZE: dict[str, Any] = {"height": 64, "width": 64}
CALL = {"flux-kontext": {**SIZE, "max_area": 64 * 64, "_auto_resize": False}, "qwen-image-edit": SIZE}


def pictures(count: int, first: int, shown: bool) -> list[Image.Image]:
    """Noise; those that show the "concept" have a bright square."""
    images = []
    for seed in range(first, first + count):
        pixels = np.random.default_rng(seed).integers(0, 160, (64, 64, 3), np.uint8)
        if shown:
            pixels[16:40, 24:48] = (250, 240, 30)
        images.append(Image.fromarray(pixels))
    return images


def bright(images: Any, grid: tuple[int, int]) -> np.ndarray:
    """A mask source: the patches of the bright square."""
    reds = np.stack([np.asarray(image)[..., 0] for image in images])
    return (reds.reshape(len(reds), grid[0], 64 // grid[0], grid[1], 64 // grid[1]) > 240).all((2, 4))


SETS = pictures(6, 0, True), pictures(6, 100, False), pictures(4, 200, True), pictures(10, 300, False)


def calibrated(rig: Rig, budget: float = 0.1, **options: Any) -> uvr_core.ConceptBank:
    bank = attrs.evolve(rig.bank, calibration=Calibration("anchor", rig.bank.probes[0], (1.0, 0.0), 1e6))
    options = {"masks": bright, "generate": CALL[rig.name], "min_patches": 2, "batch_size": 4, **options}
    return calibrate_source(rig.pipe, bank, *SETS, budget, **options)


@pytest.mark.parametrize("name", EDITING)
def test_the_engine_sees_what_was_measured(name: str, tmp_path: Any) -> None:
    rig, progress = Rig(name), []
    bank = calibrated(rig, progress=progress.append)
    look = bank.source
    assert isinstance(look, SourceLook)
    assert sum(progress) == sum(map(len, SETS))
    assert (look.text, look.min_patches, look.measured["anchors"]) == (NEUTRAL, 2, 6)
    falsely, benign = look.measured["falsely"]
    assert (falsely <= 1, benign, look.benign) == (True, 10, 10)
    assert look.measured["located"][1] == 4
    assert look.measured["patch_auroc"] > 0.9  # yellow squares are easy
    bank = load_concepts(bank.save(tmp_path / "x.safetensors"))
    located = []
    with uvr_core.attach(rig.pipe, concepts=bank, policy="observe") as reg:
        for images in (SETS[2], SETS[3]):
            rig.pipe(prompt=["a cat"] * len(images), image=images, num_inference_steps=1, **CALL[name])
            located.append(sum(finding.source_score >= look.threshold for finding in reg.report.findings))
    assert located == [look.measured["located"][0], falsely]


def test_the_direction_tells_the_classes_apart() -> None:
    """The offset puts the mean of the benign patches at 0, and their deviation is 1."""
    rig = Rig("flux-kontext")
    bank = calibrated(rig)
    assert bank.source is not None
    direction, offset = (bank.tensor(kind, bank.source.probe)[0] for kind in ("source", "source_offset"))
    scores: list[torch.Tensor] = []
    with uvr_core.attach(rig.pipe) as reg:
        with reg.recording(lambda call: scores.append(source_features(call) @ direction + offset), [bank.source.probe]):
            images = SETS[1]
            generators = [torch.Generator().manual_seed(0) for _ in images]
            call = {**CALL[rig.name], "num_inference_steps": 1, "generator": generators}
            rig.pipe(prompt=[NEUTRAL] * len(images), image=images, **call)
    assert abs(float(scores[0].mean())) < 0.3
    assert 0.5 < float(scores[0].std()) < 1.5


def test_other_parts_of_a_bank_stay() -> None:
    rig = Rig("flux-kontext")
    bank = calibrated(rig)
    again = calibrate_source(
        rig.pipe, bank, *SETS, 0.1, masks=bright, generate=CALL[rig.name], probes=bank.probes, batch_size=4
    )
    assert again.source is not None
    assert again.source.probe == bank.probes[0]
    assert {key for key in again.tensors if key.startswith("source")} == {
        f"source/{bank.probes[0]}", f"source_offset/{bank.probes[0]}",
    }  # fmt: skip
    for kept in (bank, again):
        assert kept.calibration == Calibration("anchor", rig.bank.probes[0], (1.0, 0.0), 1e6)
        assert torch.equal(kept.tensor("anchors", rig.bank.probes[0]), rig.bank.tensor("anchors", rig.bank.probes[0]))
        assert kept.probes == rig.bank.probes


def test_what_makes_no_sense_is_refused() -> None:
    rig = Rig("flux-kontext")
    never = lambda images, grid: np.zeros((len(images), *grid), bool)  # noqa: E731
    for options, says in (
        ({"masks": np.zeros((6, 8, 8), bool)}, "masks that are a callable"),
        ({"budget": 1.0}, "a budget in 0..1, got function and 1.0"),
        ({"masks": never}, "none of the anchors shows the concept"),
    ):
        with pytest.raises(UVRError, match=says):
            calibrated(rig, **options)
    with pytest.raises(UVRError, match="a set of pictures is empty"):
        calibrate_source(rig.pipe, rig.bank, *SETS[:3], [], masks=bright, generate=CALL[rig.name])
    flux = Rig("flux")
    with pytest.raises(UnsupportedRuntime, match=r"a FluxPipeline the source alone.*FluxKontext"):
        calibrate_source(flux.pipe, flux.bank, *SETS, masks=bright)
