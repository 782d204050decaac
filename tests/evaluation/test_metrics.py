"""How alike two pictures are, and two masks."""

from __future__ import annotations

import numpy as np
import pytest

from uvr_evaluation.metrics import at_pixels, likeness, overlap


def test_likeness_looks_outside_the_mask() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (64, 64, 3), np.uint8)
    changed = picture.copy()
    changed[:16, :16] = 0
    mask = np.zeros((8, 8), bool)
    mask[:3, :3] = True  # wider than the change by one window
    assert likeness(changed, picture, mask) == pytest.approx({"ssim": 1.0, "psnr": 100.0})
    assert likeness(changed, picture)["ssim"] < 0.95
    error = np.mean((changed.astype(float) - picture) ** 2)
    assert likeness(changed, picture)["psnr"] == pytest.approx(10 * np.log10(255**2 / error))
    assert likeness(changed, picture, np.ones((8, 8), bool)) == {}
    assert at_pixels(mask, (64, 64)).sum() == 24 * 24
    assert overlap(mask, mask.T) == 1
    assert overlap(mask, np.zeros_like(mask)) == 0
    assert overlap(np.zeros_like(mask), np.zeros_like(mask)) is None
