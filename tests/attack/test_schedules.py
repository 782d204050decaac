"""Ordinary runs, counted as they are: a step is the scheduler's, whatever noise levels the model is told."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    FluxImg2ImgPipeline,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.flux import pipeline_flux
from PIL import Image
from rig import MASK, Rig, reference

STOCK_SHIFT = pipeline_flux.calculate_shift


def drawn(rig: Rig, steps: int, **options: Any) -> tuple[torch.Tensor, Any]:
    """Latents and report of a regulated run, in which the second image is located."""
    with rig.attach() as reg:
        images = rig.run(num_inference_steps=steps, **options)
        report = reg.report
    assert (report.posture, [f.located for f in report.findings]) == ("regulate", [False, True])
    assert report.fired == report.steps * report.passes * report.taps
    return images, report


@pytest.mark.parametrize("steps", [4, 20, 28, 50])
@pytest.mark.parametrize("side", [1024, 1536, 2048])
def test_flux_in_bfloat16_at_published_schedules(monkeypatch: pytest.MonkeyPatch, side: int, steps: int) -> None:
    """The pipeline hands the transformer its time in bfloat16, in which neighbouring steps become equal."""
    shift = functools.partial(STOCK_SHIFT, (side // 16) ** 2)
    monkeypatch.setattr(pipeline_flux, "calculate_shift", lambda patches, *given: shift(*given))
    rig = Rig("flux")
    rig.pipe.scheduler.register_to_config(use_dynamic_shifting=True)
    rig.pipe.to(torch.bfloat16)
    levels: list[float] = []
    handle = rig.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: levels.append(float(kwargs["timestep"][0])), with_kwargs=True
    )
    _, report = drawn(rig, steps)
    handle.remove()
    assert report.steps == steps == len(levels)
    assert report.findings[1].steps_regulated == steps
    if (side, steps) == (2048, 28):
        assert len(set(levels)) < steps, "nothing collapses: this test shows nothing"


def test_a_second_order_scheduler_makes_two_steps_of_each() -> None:
    rig = Rig("sd3")
    rig.pipe.scheduler = FlowMatchHeunDiscreteScheduler.from_config(rig.pipe.scheduler.config)
    stock = rig.run(num_inference_steps=4)
    images, report = drawn(rig, 4)
    assert report.steps == len(rig.pipe.scheduler.timesteps) == 7
    assert torch.equal(images[0], stock[0])
    assert not torch.equal(images[1], stock[1])


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "Euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "Heun": FlowMatchHeunDiscreteScheduler(shift=3.0),
    "UniPC": UniPCMultistepScheduler(**FLOW),
    "DPM++": DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **FLOW),
    "LCM": FlowMatchLCMScheduler(shift=3.0),
}


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 20, 50])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_schedule_is_regulated_in_every_step(name: str, steps: int) -> None:
    """The first image is stock's, bit for bit; the second is regulated in each step of the scheduler."""
    rig = Rig("sd3")
    rig.pipe.scheduler = copy.deepcopy(SCHEDULERS[name])
    torch.manual_seed(0)  # LCM draws noise of its own in each step
    stock = rig.run(num_inference_steps=steps)
    torch.manual_seed(0)
    images, report = drawn(rig, steps)
    assert report.steps == report.findings[1].steps_regulated == len(rig.pipe.scheduler.timesteps)
    assert report.steps == (2 * steps - 1 if name == "Heun" else steps)
    assert torch.equal(images[0], stock[0])
    assert not torch.equal(images[1], stock[1])


def test_repeated_sigmas_are_steps_of_their_own() -> None:
    _, report = drawn(Rig("flux"), 4, sigmas=[1.0, 0.6, 0.6, 0.3])
    assert report.steps == 4


def test_image_to_image_runs_the_steps_that_its_strength_leaves() -> None:
    rig = Rig("flux")
    sources = {"image": [Image.new("RGB", (64, 64), "teal")] * 2, "strength": 0.5}
    rig.pipe = FluxImg2ImgPipeline(**rig.pipe.components)
    stock = rig.run(num_inference_steps=4, **sources)
    images, report = drawn(rig, 4, **sources)
    assert (report.steps, report.findings[1].steps_regulated) == (2, 2)
    assert torch.equal(images[0], stock[0])
    assert not torch.equal(images[1], stock[1])


@pytest.mark.parametrize("told", [{}, {"_num_timesteps": 1}], ids=["", "number rewritten"])
def test_an_early_stop_hands_out_what_was_regulated(told: dict[str, int]) -> None:
    def stop(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 1
        vars(pipe).update(told)
        return tensors

    stock = Rig("flux").run(num_inference_steps=5, callback_on_step_end=stop)
    images, report = drawn(Rig("flux"), 5, callback_on_step_end=stop)
    assert (report.steps, report.findings[1].steps_regulated) == (2, 2)
    assert torch.equal(images[0], stock[0])
    moved = (images[1] != stock[1]).any(-1)
    assert moved[MASK[1].flatten()].all()


def test_the_scheduler_is_its_own_again_afterwards() -> None:
    rig = Rig("flux")
    kind = type(rig.pipe.scheduler)
    assert torch.equal(drawn(rig, 3)[0], reference("flux"))
    assert type(rig.pipe.scheduler) is kind
    with rig.attach(), pytest.raises(RuntimeError, match="boom"):
        rig.run(callback_on_step_end=lambda *_: (_ for _ in ()).throw(RuntimeError("boom")))
    assert type(rig.pipe.scheduler) is kind
