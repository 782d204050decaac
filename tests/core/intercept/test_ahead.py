"""A call before the one that was asked for: one forward at noise level 1, and no trace of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from rig import EDITING, Rig

from uvr_core.engine.lookup import find_adapter
from uvr_core.intercept.ahead import first_step
from uvr_core.intercept.calls import JointCall
from uvr_core.intercept.interceptor import Interceptor
from uvr_core.intercept.intervention import Ahead, Intervention
from uvr_core.intercept.ledger import Run


class Looking(Intervention):
    """Looks ahead once, at the first source alone; notes what it saw there."""

    def __init__(self, run: Run, seen: list[tuple[int, float, int]]):
        super().__init__(run)
        self._seen = seen

    def ahead(self, arguments: Any) -> Ahead:
        source = {**arguments, "image": arguments["image"][:1]}
        return Ahead(first_step(source, "make it night", 1), lambda run: Seeing(run, self._seen))


class Seeing(Intervention):
    def __init__(self, run: Run, seen: list[tuple[int, float, int]]):
        super().__init__(run)
        self._seen = seen

    def on_call(self, call: JointCall) -> None:
        self._seen.append((len(call.query), call.forward.sigma, call.forward.step))

    def on_end(self, result: Any) -> Any:
        torch.rand(3)  # as a pipeline may that draws from nobody's generator
        return result


@pytest.mark.parametrize("terminal", [None, 0.02])  # with it diffusers cannot make a schedule of one step
@pytest.mark.parametrize("name", EDITING)
def test_one_forward_at_noise_level_one_leaves_no_trace(name: str, terminal: float | None) -> None:
    rig, seen = Rig(name), []
    if terminal is not None:
        config = dict(rig.pipe.scheduler.config)
        rig.pipe.scheduler = type(rig.pipe.scheduler).from_config(config, shift_terminal=terminal)
    stock = rig.run()
    after = torch.get_rng_state()
    taps = list(find_adapter(rig.transformer).taps(rig.transformer))
    watched = Interceptor(
        rig.transformer, find_adapter(rig.transformer), lambda run: Looking(run, seen), pipeline=rig.pipe
    )
    try:
        assert torch.equal(rig.run(), stock)
    finally:
        watched.remove()
    assert seen == [(1, 1.0, 0)] * len(taps)
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(rig.run(), stock)


def test_what_lays_out_the_source_is_kept_and_nothing_else() -> None:
    picture, steps = Image.new("RGB", (64, 64)), []
    call = first_step(
        {
            "image": picture, "prompt": "a cat", "prompt_2": "a cat", "height": 64, "width": None, "max_area": 4096,
            "guidance_scale": 2.5, "num_inference_steps": 28, "latents": torch.zeros(1), "generator": None,
            "true_cfg_scale": 4.0, "negative_prompt": "", "callback_on_step_end": steps.append,
        },
        "make it night",
        2,
    )  # fmt: skip
    assert set(call) == {
        "image", "prompt", "height", "max_area", "guidance_scale", "true_cfg_scale", "num_inference_steps",
        "generator", "output_type", "callback_on_step_end",
    }  # fmt: skip
    assert (call["prompt"], call["true_cfg_scale"], call["image"]) == (["make it night"] * 2, 1.0, picture)
    noise = [torch.randn(3, generator=generator) for generator in call["generator"]]
    assert torch.equal(*noise)
    assert "true_cfg_scale" not in first_step({"image": picture}, "make it night", 1)
