"""A window that no step of a schedule meets is told before the first step, with the remedy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from runner import PROBE, Runner

import uvr_core
from uvr_core.engine.schedule import planned


def test_levels_are_the_schedulers_from_the_first_one_on() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    levels = (scheduler.timesteps / 1000).tolist()
    assert planned(scheduler, 1.0) == pytest.approx(levels)
    assert planned(scheduler, float(torch.tensor(levels[2]).bfloat16())) == pytest.approx(levels[2:])
    assert planned(scheduler, 0.123) == ()  # of another run
    assert planned(None, 1.0) == planned(SimpleNamespace(timesteps=None), 1.0) == ()
    heun = FlowMatchHeunDiscreteScheduler()
    heun.set_timesteps(4)
    assert len(planned(heun, 1.0)) == 7


def found(window: tuple[float, float], threshold: float = 0.0) -> uvr_core.Calibration:
    return uvr_core.Calibration("contrast", PROBE, window, threshold)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"calibration": found((0.4, 0.2))},
            r"'x' is never looked for.*0\.4 to 0\.2, and its 1 steps are at 1; take",
        ),
        ({"verification": found((0.4, 0.2), 1e9)}, r"'x' is never verified.*0\.4 to 0\.2.*or attach with verify=False"),
    ],
)
def test_no_step_is_taken_where_a_window_is_missed(
    runner: Runner, bank: uvr_core.ConceptBank, changes: dict[str, Any], says: str
) -> None:
    steps: list[Any] = []
    handle = runner.pipe.transformer.transformer_blocks[0].register_forward_hook(lambda *_: steps.append(1))
    with uvr_core.attach(runner.pipe, concepts=attrs.evolve(bank, **changes)) as reg:
        with pytest.raises(uvr_core.UVRError, match=says):
            runner.run(num_inference_steps=1)
        assert not steps
        runner.run(num_inference_steps=8)
        assert len(steps) == 8 == reg.report.steps
    handle.remove()


def test_a_transformer_driven_by_hand_is_told_too(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    """Where the generation names its scheduler; else when it ends."""
    missed = attrs.evolve(bank, calibration=found((0.4, 0.2)))
    with uvr_core.attach(runner.pipe.transformer, concepts=missed) as reg:
        with pytest.raises(uvr_core.UVRError, match="is never looked for in this schedule"):
            with reg.generation(runner.pipe.scheduler):
                runner.run(num_inference_steps=1)
        with pytest.raises(uvr_core.UVRError, match="was never looked for"), reg.generation():
            runner.run(num_inference_steps=1)
