"""The dress rehearsal, shrunk: end to end, and that memory grows with neither steps nor images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import uvr_core
from uvr_core.fit.moments import NARROW

sys.path.append(str(Path(__file__).parents[3] / "tools" / "benchmarks"))
import rehearsal

SMALL = {"blocks": 1, "heads": 5, "size": 64, "text": 96, "dtype": torch.bfloat16, "device": "cpu"}


@pytest.mark.parametrize("name", ["flux", "flux-kontext", "qwen-image"])
def test_every_stage_runs_on_every_kind(name: str) -> None:
    assert SMALL["heads"] * SMALL["size"] > NARROW  # the shared covariance, as at published widths
    told: list[Any] = []
    plan = {"blocks": 1, "heads": 5, "head_dim": 64, "text": 96, "patches": 64, "steps": 2, "images": 1}
    table = rehearsal.rehearse(
        name,
        argparse.Namespace(**plan, dtype="bfloat16", device="cpu", until="evaluate"),
        lambda row: told.append(dict(row["stages"])),
    )
    act = "edit" if name == "flux-kontext" else "generate"
    assert list(table["stages"]) == ["warm-up", "plain", "collect", "calibrate", act, "evaluate"]
    assert table["stages"][act]["patches"] > 0
    assert all(row["seconds"] > 0 for row in table["stages"].values())
    assert len(told) == 6


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["collect", "calibrate"])
def test_memory_grows_with_neither_steps_nor_images(stage: str) -> None:
    """Most bytes that tensors hold at once, of three times as many steps and of three times as many images.

    Keeping the features, as collecting once did, would hold 1.3 MB per step and image and probe here, of 12 MB in all.
    """
    pipe = rehearsal.pipeline("flux", **SMALL)

    def masks(images: Any, grid: tuple[int, int]) -> Any:
        marked = np.zeros((len(images), *grid), bool)
        marked[:, :4] = True
        return marked

    def peak(steps: int, images: int) -> int:
        call = rehearsal.options("flux", 1024, steps, SMALL["text"])
        unsafe, benign = (rehearsal.prompts(images, safe, SMALL["text"]) for safe in (False, True))
        common = {"generate": call, "batch_size": 1, "masks": masks}

        def collect() -> Any:
            return uvr_core.collect(pipe, "weapon", prompts=unsafe, benign_prompts=benign, **common)

        if stage == "collect":
            return int(rehearsal.peak_bytes(collect, torch.device("cpu")))
        bank = collect()
        calibrate = lambda: uvr_core.calibrate(pipe, bank, unsafe, benign, 0.5, **common)  # noqa: E731
        return int(rehearsal.peak_bytes(calibrate, torch.device("cpu")))

    least = peak(2, 1)
    feature = 1024 * 320 * 4  # of one call, float32
    assert peak(6, 1) - least < feature
    assert peak(2, 3) - least < feature
