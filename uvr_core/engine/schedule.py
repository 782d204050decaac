"""Whether a schedule meets the windows of its concepts: told before the first step, as far as the scheduler says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import UVRError
from ..intercept.ledger import Forward
from .plan import ConceptPlan

_NEAR = 0.005  # noise levels: what bfloat16 rounds away of a timestep


def planned(scheduler: Any, sigma: float) -> tuple[float, ...]:
    """Noise levels of a run's forwards, from the first one's on; empty: not known. Host sync, once a run.

    Args:
        scheduler: of diffusers, its timesteps set; None: there is none.
        sigma: of the first forward. A schedule that does not hold it says nothing of this run.
    """
    timesteps, config = getattr(scheduler, "timesteps", None), getattr(scheduler, "config", None)
    if timesteps is None or (scale := getattr(config, "num_train_timesteps", None)) is None:
        return ()
    levels = [t / scale for t in torch.as_tensor(timesteps).flatten().tolist()]
    first = next((i for i, level in enumerate(levels) if abs(level - sigma) <= _NEAR), len(levels))
    return tuple(levels[first:])


def refuse_missed(plan: Sequence[ConceptPlan], scheduler: Any, forward: Forward) -> None:
    """Raise UVRError, with the remedy, for a concept whose window or verification no noise level of a run meets.

    Args:
        scheduler: see `planned`.
        forward: only the first one of a run is asked for.
    """
    first = forward.step == forward.number == 0
    levels = planned(scheduler, forward.sigma) if first else ()
    for concept in plan if levels else ():
        verification = concept.verification
        windows = {"looked for": concept.window} | ({} if verification is None else {"verified": verification.window})
        for what, (high, low) in windows.items():
            if not any(low - _NEAR <= level <= high + _NEAR for level in levels):
                remedy = "take more steps, or a schedule that meets it, or calibrate the concept for this one"
                raise UVRError(
                    f"concept {concept.name!r} is never {what} in this schedule: that is done at noise levels "
                    f"{high:.3g} to {low:.3g}, and its {len(levels)} steps are at "
                    f"{', '.join(f'{level:.3g}' for level in levels[:8])}{', ...' * (len(levels) > 8)}; {remedy}"
                    f"{', or attach with verify=False' * (what == 'verified')}"
                )
