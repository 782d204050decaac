"""Which of the stages that UVR, arXiv 2606.06875, describes are there, by rules that can say no."""

from __future__ import annotations

import attrs
import numpy as np

from .curves import band, boundary, change_of
from .flows import REFERENCE, Array, Flows, role_of

LEAST_LIFT = 0.5  # of what uniform attention would give


@attrs.frozen
class Stage:
    """One of the stages that UVR, arXiv 2606.06875, describes, as it is there or not.

    Attributes:
        seen: whether the rule holds; None: the model has no such flow.
        step: the boundary of the flow that it is about; None where there is none.
        why: the numbers behind it, in a sentence.
    """

    seen: bool | None
    step: int | None
    why: str


def stages_of(flows: Flows, into: str = "output") -> dict[str, Stage]:
    """Hold the flows against the paper's three stages, by shares of attention averaged over blocks.

    - start-up (text drives the picture in the first steps, then no longer): text to `into` has a falling boundary in
      the first half of the run; see `boundary`.
    - amplification (the picture takes over from then on): output to `into` has a rising boundary in the first half.
    - interference (the source keeps coming in): reference to `into` has no falling boundary, and at every step a
      reference token gets at least half of what uniform attention over all tokens would give it (lower end of the
      95% band over images).

    Args:
        into: "output", or "located": the patches that show the concept, of which the paper speaks.

    Returns:
        {"start-up", "amplification", "interference": Stage}.

    Raises:
        UVRError: an unknown role.
    """
    return {
        "start-up": _crossing(flows, "text", into, falls=True),
        "amplification": _crossing(flows, "output", into, falls=False),
        "interference": _interference(flows, into),
    }


def _crossing(flows: Flows, source: str, into: str, *, falls: bool) -> Stage:
    curve = flows.curve(source, into)
    if not (flows.counts[:, role_of(source)] > 0).any() or not np.isfinite(curve).all(1).any():
        return Stage(None, None, f"there is no flow from {source} to {into}")
    at, words = boundary(curve), _course(curve, source, into)
    if at.step is None:
        return Stage(False, None, f"{words}: {at.reason}")
    low, high = at.interval or (at.step, at.step)
    words += f", with a boundary at step {at.step} (95% interval {low} to {high})"
    if (at.change < 0) != falls:
        return Stage(False, at.step, f"{words}: it {'rises' if falls else 'falls'}")
    if at.step > len(flows.sigmas) / 2:
        return Stage(False, at.step, f"{words}: not in the first half of the run")
    return Stage(True, at.step, words)


def _interference(flows: Flows, into: str) -> Stage:
    curve = flows.curve("reference", into)
    if not (flows.counts[:, REFERENCE] > 0).any() or not np.isfinite(curve).all(1).any():
        return Stage(None, None, f"there is no flow from reference to {into}")
    at, low = boundary(curve), band(flows.curve("reference", into, "lift"))[1]
    words = f"{_course(curve, 'reference', into)}, at every step at least {min(low):.2f} of uniform attention per token"
    if at.step is not None and at.change < 0:
        return Stage(False, at.step, f"{words}; it falls at step {at.step}")
    if not min(low) >= LEAST_LIFT:
        return Stage(False, None, f"{words}; {LEAST_LIFT} asked for")
    return Stage(True, None, words)


def _course(curve: Array, source: str, into: str) -> str:
    mean = band(curve)[0]
    return f"{source} to {into} goes from {mean[0]:.3f} to {mean[-1]:.3f} ({float(change_of(mean)):+.0%})"
