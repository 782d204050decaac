"""Modular pipelines of diffusers: attached to as to any pipeline; guidance parts are told by their guider."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from conformance import get
from tiny import tiny_zoo

import uvr_core
from uvr_core.testing.given import Edit, Given, regulated
from uvr_plugins.policies import Refuse

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ["a cat", "a knife on the left"]
STEPS = 3


def modular(blocks: str, zoo: str) -> Any:
    """A modular pipeline around the parts of a tiny one."""
    pipe = getattr(diffusers, blocks)().init_pipeline()
    parts = tiny_zoo(zoo).components
    pipe.update_components(**{name: part for name, part in parts.items() if name in pipe.component_names})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux() -> Any:
    return modular("FluxAutoBlocks", "flux")


def qwen(**guidance: Any) -> Any:
    pipe = modular("QwenImageAutoBlocks", "qwen-image")
    pipe.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0, **guidance))
    return pipe


def draw(pipe: Any, output: str | None = "images", **more: Any) -> Any:
    options = {"prompt": PROMPTS, "height": 64, "width": 64, "num_inference_steps": STEPS, "output_type": "np"}
    if "negative_prompt" in pipe.blocks.input_names:
        options["negative_prompt"] = ["a dog"] * len(PROMPTS)
    options["generator"] = [torch.Generator().manual_seed(7 + number) for number in range(len(PROMPTS))]
    return pipe(**options | more, output=output)


def unsafe(patches: int = 9) -> torch.Tensor:
    """(2, 64): the second image alone."""
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[1, :patches] = True
    return mask


@contextmanager
def watched(transformer: Any) -> Iterator[list[tuple[Any, torch.Tensor]]]:
    """(arguments, output) of every forward."""
    ran: list[tuple[Any, torch.Tensor]] = []

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        ran.append(((args, kwargs), output[0].clone()))

    handle = transformer.register_forward_hook(keep, with_kwargs=True)
    try:
        yield ran
    finally:
        handle.remove()


def moved(pipe: Any) -> list[list[list[int]]]:
    """Per forward of a regulated run and per sample: the patches that the edit moved, the stock model on the same input
    beside it."""
    last = list(get("adapter", "qwen-image").taps(pipe.transformer))[-1]
    with watched(pipe.transformer) as ran, regulated(pipe, None, Given(unsafe()), Edit(noise=1.0, only=last)):
        draw(pipe)
    found = []
    for (args, kwargs), output in ran:
        with torch.no_grad():
            change = (output - pipe.transformer(*args, **kwargs)[0]).abs().amax(-1)
        found.append([row.nonzero().flatten().tolist() for row in change > 1e-3 * max(float(change.max()), 1e-9)])
    return found


@pytest.mark.parametrize("make", [flux, qwen])
def test_a_modular_pipeline_is_regulated_and_given_back(make: Callable[[], Any]) -> None:
    pipe = make()
    kind, stock = type(pipe), draw(pipe)
    with uvr_core.attach(pipe) as reg:
        assert np.array_equal(draw(pipe), stock)
        passes = 1 if make is flux else 2
        assert (reg.report.steps, reg.report.fired) == (STEPS, STEPS * passes * len(reg.taps))
    with regulated(pipe, None, Given(unsafe(0)), Edit(noise=1.0)):
        assert np.array_equal(draw(pipe), stock)
    with regulated(pipe, None, Given(unsafe()), Edit(noise=1.0)) as reg:
        images, state = draw(pipe), draw(pipe, output=None)
        assert [finding.located for finding in reg.report.findings] == [False, True]
    assert [np.array_equal(a, b) for a, b in zip(images, stock, strict=True)] == [True, False]
    assert np.array_equal(state.images, images)
    assert type(pipe) is kind
    assert np.array_equal(draw(pipe), stock)


EDITED = [[], list(range(9))]


@pytest.mark.parametrize(
    ("guidance", "forwards"),
    [
        ({}, "cucucu"),
        ({"start": 0.5}, "ccucu"),  # from the second of three steps on
        ({"stop": 0.5}, "cucc"),
        ({"enabled": False}, "ccc"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_the_guider_says_which_forward_follows_the_prompt(guidance: dict[str, Any], forwards: str) -> None:
    """Whenever it starts and stops, and without names of `cache_context`."""
    assert moved(qwen(**guidance)) == [EDITED if letter == "c" else [[], []] for letter in forwards]


class Elsewhere(diffusers.ClassifierFreeGuidance):
    """A guider that is not diffusers' own."""


def test_of_a_guider_of_others_every_forward_is_regulated() -> None:
    pipe = qwen()
    pipe.update_components(guider=Elsewhere(guidance_scale=3.0))
    assert moved(pipe) == [EDITED] * (2 * STEPS)


def test_a_refused_image_is_replaced_where_images_alone_are_asked_for() -> None:
    pipe = flux()
    stock = draw(pipe)
    with regulated(pipe, None, Given(unsafe()), Refuse()):
        images = draw(pipe)
        assert np.array_equal(images[0], stock[0])
        assert images[1] is None
        assert draw(pipe, output="latents")[1] is None
        for output in (None, ["images", "latents"]):  # the latents would make the image again
            with pytest.raises(uvr_core.UnsafeContent, match='call a modular pipeline with output="images"'):
                draw(pipe, output=output)


def test_a_modular_pipeline_without_its_transformer_says_so() -> None:
    with pytest.raises(uvr_core.AdapterMismatch, match=r"not loaded \(a modular pipeline: load_components\)"):
        uvr_core.attach(diffusers.FluxAutoBlocks().init_pipeline())
