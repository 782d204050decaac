"""Signatures: what pipelines of diffusers take, under a regulator too, and the seeds of a call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from runner import Runner

import uvr_core
from uvr_core import signatures


def bare(name: str) -> Any:
    """A pipeline object without any parts."""
    cls = getattr(diffusers, name)
    return cls.__new__(cls)


@pytest.mark.parametrize(
    ("pipeline", "takes", "needs"),
    [
        ("FluxPipeline", False, False),
        ("FluxImg2ImgPipeline", True, False),
        ("FluxKontextPipeline", True, True),
        ("QwenImagePipeline", False, False),
        ("QwenImageEditPipeline", True, True),
        ("StableDiffusion3Pipeline", False, False),
    ],
)
def test_which_pipelines_take_and_need_a_source(pipeline: str, takes: bool, needs: bool) -> None:
    pipe = bare(pipeline)
    assert (signatures.takes_source(pipe), signatures.needs_source(pipe)) == (takes, needs)


def test_arguments_and_their_defaults_are_those_of_the_stock_class_under_a_regulator(runner: Runner) -> None:
    names = list(signatures.call_of(runner.pipe))
    assert names[0] == "prompt"
    assert "self" not in names
    with uvr_core.attach(runner.pipe):
        assert list(signatures.call_of(runner.pipe)) == names
        assert signatures.default_of(runner.pipe, "true_cfg_scale") == 1.0
    assert signatures.takes(runner.pipe, "negative_prompt")
    assert not signatures.takes(runner.pipe, "image")
    assert signatures.default_of(runner.pipe, "image") is None


def test_seeds_are_found_however_the_generators_are_given() -> None:
    class Pipeline:
        def __call__(self, prompt: str, generator: Any = None) -> None: ...

    one, two = (torch.Generator().manual_seed(seed) for seed in (5, 6))
    assert signatures.seeds_of(Pipeline, ("a",), {}) == (0,)
    assert signatures.seeds_of(Pipeline, ("a", one), {}) == (5,)
    assert signatures.seeds_of(Pipeline, (), {"prompt": "a", "generator": [two, one]}) == (6, 5)
    assert signatures.seeds_of(Pipeline, (), {"generator": one, "colour": "red"}) == (0,), "the call itself will fail"


def test_a_forwards_arguments_by_name() -> None:
    layer = torch.nn.Linear(1, 1)
    x = torch.zeros(1)
    assert signatures.forward_arguments(layer, (x,), {}) == {"self": layer, "input": x}
    with pytest.raises(TypeError, match="colour"):
        signatures.forward_arguments(layer, (x,), {"colour": 1})


def test_required_arguments_are_those_without_a_default() -> None:
    def function(a: int, b: int = 1, *rest: int, c: int, **more: int) -> None: ...

    assert signatures.required(function) == ["a", "c"]
    assert signatures.required(dict) == []


@pytest.mark.parametrize(
    ("arguments", "images"),
    [
        ({"prompt": "a"}, 2),
        ({"prompt": 5}, None),
        ({"prompt": "a", "colour": "red"}, None),
        ({"prompt": ["a", "b"], "num_images_per_prompt": 3}, 6),
        ({"prompt": ["a", "b"], "num_images_per_prompt": None}, 2),
        ({"prompt_embeds": torch.zeros(3, 5, 8)}, 6),
        ({"prompt_embeds": [torch.zeros(5, 8)] * 3}, 6),  # Z-Image: an entry per prompt
        ({"prompt_embeds": torch.zeros(32, 2, 5, 8), "pooled_prompt_embeds": torch.zeros(2, 8)}, 4),  # layers first
        ({}, None),
    ],
)
def test_how_many_images_a_call_asks_for(arguments: dict[str, Any], images: int | None) -> None:
    class Pipeline:
        def __call__(
            self,
            prompt: Any = None,
            prompt_embeds: Any = None,
            pooled_prompt_embeds: Any = None,
            num_images_per_prompt: int | None = 2,
        ) -> None: ...

    assert signatures.images_of(Pipeline, (), arguments) == images


def test_a_modular_pipelines_arguments_are_read_through_its_keywords_and_its_state() -> None:
    class Modular:
        def __call__(self, state: Any = None, output: str | None = None, **kwargs: Any) -> None: ...

    state = SimpleNamespace(values={"prompt": ["a", "b"], "generator": torch.Generator().manual_seed(3)})
    assert signatures.seeds_of(Modular, (), {"generator": torch.Generator().manual_seed(5)}) == (5,)
    assert signatures.seeds_of(Modular, (), {"state": state}) == (3,)
    assert signatures.seeds_of(Modular, (state,), {"generator": torch.Generator().manual_seed(5)}) == (5,)
    assert signatures.images_of(Modular, (), {"prompt": ["a", "b"], "num_images_per_prompt": 2}) == 4
    assert signatures.images_of(Modular, (state,), {"num_images_per_prompt": 3}) == 6
