"""Curves over steps: their mean and band over images, and the step at which one changes over."""

from __future__ import annotations

import attrs
import numpy as np
import numpy.typing as npt

from uvr_core.errors import UVRError

from .flows import Array

LEAST_IMAGES, LEAST_STEPS = 5, 4
LEAST_CHANGE = 0.1  # of the larger of the first and the last level
LEAST_ABRUPT = 0.5  # of the whole change, within a quarter of the steps


def band(curves: Array, resamples: int = 1000) -> tuple[Array, Array, Array]:
    """Mean over images with its 95% bootstrap band; images with a NaN are left out.

    Args:
        curves: (I, T).

    Returns:
        mean, low, high, (T,) each; NaN where no image is left.
    """
    whole = curves[np.isfinite(curves).all(1)]
    if not len(whole):
        nothing = np.full(curves.shape[1], np.nan)
        return nothing, nothing, nothing
    low, high = np.quantile(bootstrap(len(whole), resamples) @ whole, (0.025, 0.975), axis=0)
    return whole.mean(0), low, high


def bootstrap(images: int, resamples: int) -> Array:
    """(resamples, images): how much of a mean each image is, in each resample of them; always the same draws."""
    drawn = np.random.default_rng(0).integers(images, size=(resamples, images))
    return np.stack([np.bincount(row, minlength=images) for row in drawn]) / images


def mean_of(values: Array) -> Array:
    """Mean over images (axis 0), without those that have a NaN anywhere."""
    whole = values[np.isfinite(values).reshape(len(values), -1).all(1)]
    return whole.mean(0) if len(whole) else np.full(values.shape[1:], np.nan)


@attrs.frozen
class Boundary:
    """Where a curve over steps changes over from its first level to its last.

    Attributes:
        step: the first step of the new level; None: no boundary.
        interval: 95% bootstrap interval of the step, (low, high); None where there is no boundary.
        change: (last - first) / max(|first|, |last|), the image-averaged curve's first and last step, in -1..1 for
            curves that are nowhere negative: below 0 = it falls.
        change_interval: its 95% bootstrap interval.
        abrupt: the part of the whole change that lies in the fastest quarter of the steps around the half-way step; a
            straight line has about 0.25.
        reason: why there is none; "" where there is one.
    """

    step: int | None
    interval: tuple[int, int] | None
    change: float
    change_interval: tuple[float, float]
    abrupt: float
    reason: str = ""


def boundary(curves: Array, *, resamples: int = 1000) -> Boundary:
    """Find the step at which the image-averaged curve leaves the half nearer to its first level for good.

    The rule. Let m(t) be the mean over images, and h = (m(0) + m(T-1)) / 2. The boundary is the first step from which
    on m stays on the last level's side of h. There is none unless

    - there are at least 5 images and 4 steps;
    - the relative change between the first and the last step is at least 0.1 in size at both ends of its 95% bootstrap
      interval over images, with one sign: a curve that is flat, or that comes back to where it began, has no boundary;
    - more than half of the change lies within some round(T / 4) consecutive steps around the boundary: a steady drift
      has no boundary;
    - the 95% bootstrap interval of the step spans at most half of the run.

    Multiplying the curves by a positive number changes nothing.

    Args:
        curves: (I, T); images with a NaN are left out.

    Returns:
        Boundary; its `step` is None, and `reason` says why, where there is none.

    Raises:
        UVRError: `curves` is not (I, T) with T >= 1.
    """
    if curves.ndim != 2 or not curves.shape[1]:
        raise UVRError(f"curves: expected (images, steps), got shape {curves.shape}")
    whole = np.asarray(curves[np.isfinite(curves).all(1)], dtype=np.float64)
    steps = curves.shape[1]
    if len(whole) < LEAST_IMAGES or steps < LEAST_STEPS:
        change = change_of(whole.mean(0)) if len(whole) else np.nan
        missing = (
            f"{len(whole)} images, {LEAST_IMAGES} needed"
            if len(whole) < LEAST_IMAGES
            else f"{steps} steps, {LEAST_STEPS} needed"
        )
        return Boundary(None, None, float(change), (np.nan, np.nan), np.nan, missing)
    mean, drawn = whole.mean(0), bootstrap(len(whole), resamples) @ whole
    changes = change_of(drawn)
    interval = (float(np.quantile(changes, 0.025)), float(np.quantile(changes, 0.975)))
    step, abrupt = int(_half_way(mean)), _abrupt(mean)
    low, high = (round(float(q)) for q in np.quantile(_half_way(drawn), (0.025, 0.975)))
    reason = ""
    if interval[0] * interval[1] <= 0 or min(map(abs, interval)) < LEAST_CHANGE:
        reason = f"changes by less than {LEAST_CHANGE:.0%} from the first step to the last, or not surely"
    elif abrupt <= LEAST_ABRUPT:
        reason = f"drifts: only {abrupt:.0%} of the change lies within a quarter of the steps"
    elif high - low > steps / 2:
        reason = f"the step is uncertain: {low} to {high} of {steps}"
    change = float(change_of(mean))
    if reason:
        return Boundary(None, None, change, interval, abrupt, reason)
    return Boundary(step, (low, high), change, interval, abrupt)


def change_of(curve: Array) -> Array:
    """(..., T) -> (...,): relative change from the first step to the last; 0 for all zeros."""
    first, last = curve[..., 0], curve[..., -1]
    scale = np.maximum(np.abs(first), np.abs(last))
    return np.asarray((last - first) / np.where(scale == 0, 1.0, scale))


def _half_way(curve: Array) -> npt.NDArray[np.intp]:
    """(..., T) -> (...,): the first step from which on a curve stays nearer to its last level; T - 1 for a flat one."""
    first, last = curve[..., :1], curve[..., -1:]
    before = np.sign(last - first) * (curve - 0.5 * (first + last)) < 0
    step = curve.shape[-1] - before[..., ::-1].argmax(-1)
    return np.asarray(np.where(before.any(-1), step, curve.shape[-1] - 1))


def _abrupt(curve: Array) -> float:
    """See Boundary.abrupt."""
    steps, step = len(curve), int(_half_way(curve))
    width = max(1, round(steps / 4))
    whole = curve[-1] - curve[0]
    starts = range(max(0, step - width), min(step - 1, steps - 1 - width) + 1)
    if whole == 0 or not len(starts):
        return 0.0
    return float(max((curve[start + width] - curve[start]) / whole for start in starts))
