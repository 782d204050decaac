"""Small versions of any class: what is tied together stays so, they are fresh, and they fit the kit."""

from __future__ import annotations

from collections.abc import Iterator

import diffusers
import pytest
import torch
from conformance import FLUX
from torch import nn

from uvr_core.errors import UVRError
from uvr_core.testing import check_adapter
from uvr_core.testing.tiny import _build, example_of, model_class, shrink, small_model, tiny_example

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_example_of_a_class_by_name() -> None:
    flux = tiny_example("FluxTransformer2DModel")
    assert flux.references
    assert check_adapter(FLUX, lambda: tiny_example("FluxTransformer2DModel")).ok


def test_what_is_no_model_class_is_refused() -> None:
    assert model_class("SD3Transformer2DModel") is diffusers.SD3Transformer2DModel
    with pytest.raises(UVRError, match="no model class 'FluxTransformer2DModle'; did you mean 'FluxTr"):
        model_class("FluxTransformer2DModle")


def test_a_small_version_keeps_what_its_class_ties_together() -> None:
    large = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "attention_head_dim": 64}
    small = shrink(diffusers.SD3Transformer2DModel, large)
    assert small["caption_projection_dim"] == small["num_attention_heads"] * small["attention_head_dim"] == 32
    assert small["num_layers"] == 2
    assert sum(shrink(diffusers.FluxTransformer2DModel)["axes_dims_rope"]) == 16
    assert shrink(diffusers.FluxTransformer2DModel, {"guidance_embeds": True})["guidance_embeds"] is True


def test_an_example_is_fresh_and_leaves_the_random_state_alone() -> None:
    small = small_model(diffusers.SD3Transformer2DModel)
    state = torch.random.get_rng_state()
    one, two = example_of(small), example_of(small)
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.model is not two.model
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert all(parameter.any() for parameter in tiny_example("PRXTransformer2DModel").model.parameters()
               if parameter.ndim > 1)  # fmt: skip


@pytest.fixture
def unfilled_memory_is_nan() -> Iterator[None]:
    """What torch.empty may give at any time, always."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.usefixtures("unfilled_memory_is_nan")
def test_a_parameter_that_a_class_never_fills_is_random_too() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pad_token = nn.Parameter(torch.empty(1, 8))
            self.norm = nn.LayerNorm(8)

    one, two = _build(Padded, {}), _build(Padded, {})
    assert one.pad_token.isfinite().all()
    assert one.pad_token.any()
    assert torch.equal(one.pad_token, two.pad_token)
    assert torch.equal(one.norm.weight, torch.ones(8))
