"""Where a curve over steps changes over, by rules that can say "no"."""

from __future__ import annotations

import numpy as np
import pytest
from flowing import FALL, STEPS, curves

from uvr_analysis import boundary
from uvr_core.errors import UVRError


@pytest.mark.parametrize("at", [3, 6, 15])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_step_is_found_where_it_is(at: int, sign: int) -> None:
    result = boundary(curves(0.5 + sign * np.where(at > STEPS, -0.15, 0.15)))
    assert result.step == at
    assert result.interval == (at, at)
    assert np.sign(result.change) == sign
    assert result.reason == ""


def test_a_soft_change_is_found_with_its_uncertainty() -> None:
    result = boundary(curves(0.3 + 0.3 / (1 + np.exp(STEPS - 7.0)), noise=0.03))
    assert result.step is not None
    assert result.interval is not None
    assert result.interval[0] <= 7 <= result.interval[1] + 1
    assert result.interval[0] < result.interval[1]
    assert -0.55 < result.change < -0.45


@pytest.mark.parametrize(
    ("line", "noise", "reason"),
    [
        (np.full(20, 0.4), 0.0, "less than 10%"),  # flat
        (np.full(20, 0.4), 0.05, "less than 10%"),
        (np.zeros(20), 0.0, "less than 10%"),
        (np.where(STEPS < 6, 0.40, 0.38), 0.001, "less than 10%"),  # sure, and small
        (np.where((STEPS > 5) & (STEPS < 12), 0.2, 0.4), 0.01, "less than 10%"),  # comes back
        (np.linspace(0.6, 0.3, 20), 0.01, "drifts"),
        (np.where(STEPS < 6, 0.6, 0.3), 0.8, "less than 10%"),  # drowned in noise
    ],
)
def test_no_boundary(line: np.ndarray, noise: float, reason: str) -> None:
    result = boundary(curves(line, noise=noise))
    assert result.step is None
    assert result.interval is None
    assert reason in result.reason


def test_images_that_disagree_on_the_step_give_none() -> None:
    """Each image has a step of its own, some early and some late: two wide groups."""
    early, late = curves(np.where(STEPS < 2, 0.6, 0.3), 8), curves(np.where(STEPS < 17, 0.6, 0.3), 8, seed=1)
    result = boundary(np.concatenate([early, late]))
    assert result.step is None
    assert "uncertain" in result.reason or "drifts" in result.reason


def test_scale_does_not_matter_and_images_with_gaps_are_left_out() -> None:
    line = curves(FALL)
    result = boundary(line)
    for factor in (1e-3, 1e3):
        scaled = boundary(factor * line)
        assert (scaled.step, scaled.interval) == (result.step, result.interval)
        assert scaled.change == pytest.approx(result.change)
    broken = np.concatenate([line, np.full((3, 20), np.nan), np.full((2, 20), 5.0) * np.where(STEPS == 3, np.nan, 1)])
    assert boundary(broken) == result


def test_too_little_to_tell() -> None:
    assert "4 images" in boundary(curves(FALL, images=4)).reason
    assert boundary(curves(FALL, images=5)).step == 6
    assert "3 steps" in boundary(curves([0.6, 0.3, 0.3])).reason
    assert "0 images" in boundary(np.full((8, 20), np.nan)).reason
    with pytest.raises(UVRError, match="images, steps"):
        boundary(np.zeros(20))
