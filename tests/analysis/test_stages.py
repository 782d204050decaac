"""The three stages of the paper, told apart."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from flowing import FALL, STEPS, curves

from uvr_analysis import stages_of
from uvr_analysis.flows import LOCATED, OUTPUT, Flows


def synthetic(text: Any, reference: Any) -> Flows:
    """16 images, 2 blocks; output reads text and reference as told, and itself for the rest."""
    share = np.full((16, 20, 2, 5, 5), np.nan, np.float32)
    text, reference = curves(text, noise=0.005), curves(reference, noise=0.0)
    share[..., OUTPUT, :LOCATED] = np.stack([text, 1 - text - reference, reference], -1)[:, :, None]
    counts = np.tile([32, 64, 64 if reference.any() else 0, 0, 0], (16, 1))
    return Flows(share, counts, ("a", "b"), np.linspace(1, 0.05, 20).tolist(), (8, 8), [None] * 16)


def seen(flows: Flows) -> dict[str, bool | None]:
    return {name: stage.seen for name, stage in stages_of(flows).items()}


def test_stages_are_told_apart() -> None:
    nothing = np.zeros(20)
    late = np.where(STEPS < 15, 0.6, 0.3)
    source = np.full(20, 0.4)
    assert seen(synthetic(FALL, nothing)) == {"start-up": True, "amplification": True, "interference": None}
    assert stages_of(synthetic(FALL, nothing))["start-up"].step == 6
    assert seen(synthetic(FALL[::-1], nothing)) == {"start-up": False, "amplification": False, "interference": None}
    assert seen(synthetic(late, nothing))["start-up"] is False
    assert "first half" in stages_of(synthetic(late, nothing))["start-up"].why
    assert seen(synthetic(np.linspace(0.6, 0.3, 20), nothing))["start-up"] is False
    assert seen(synthetic(np.full(20, 0.3), source)) == {
        "start-up": False, "amplification": False, "interference": True,
    }  # fmt: skip
    assert seen(synthetic(np.full(20, 0.3), np.where(STEPS < 8, 0.5, 0.25)))["interference"] is False
    assert seen(synthetic(np.full(20, 0.3), np.full(20, 0.15)))["interference"] is False  # less than half of uniform
    assert set(seen(attrs.evolve(synthetic(FALL, nothing))).values()) == {True, None}
    assert {s.seen for s in stages_of(synthetic(FALL, nothing), "located").values()} == {None}
