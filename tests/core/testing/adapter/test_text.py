"""Prompts of unequal length, and text that reaches the picture beside the joint attention, are caught."""

from __future__ import annotations

import functools
from typing import Any

import attrs
import diffusers
import pytest
import torch
from conformance import FLUX, failed
from tiny import example

from uvr_core.adapter import Adapter, Arguments, Layout, TextRoute
from uvr_core.testing import Example, check_adapter
from uvr_core.testing.adapter.text import closed, leaks
from uvr_core.testing.tiny import tiny_example

pytestmark = pytest.mark.usefixtures("one_thread")

LUMINA, FIBO = "Lumina2Transformer2DModel", "BriaFibo2Transformer2DModel"


def skip_unless_there(name: str) -> None:
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")


def square(arguments: Arguments) -> Layout:
    patch = arguments["self"].config.patch_size
    height, width = (side // patch for side in arguments["hidden_states"].shape[-2:])
    return Layout((height, width))


def in_order(arguments: Arguments) -> Layout:
    """Lumina 2 has text, picture and padding in each sample: the shorter the prompt, the earlier the picture."""
    layout, texts = square(arguments), arguments["encoder_attention_mask"].sum(1).tolist()

    def order(tokens: int) -> torch.Tensor:
        every, count = torch.arange(tokens), layout.output
        return torch.stack([torch.cat([every[:n], every[n + count :], every[n : n + count]]) for n in texts])

    return attrs.evolve(layout, order=order)


def adapter(model: str, attention: str, layout: Any, time: Any, **options: Any) -> Adapter:
    return Adapter(name="ported", model=model, attention=(attention,), layout=layout, time=time, **options)


def test_a_layout_that_holds_for_equal_prompts_alone_is_caught() -> None:
    skip_unless_there(LUMINA)
    ported = functools.partial(adapter, LUMINA, "layers.*.attn", time=lambda a: 1 - a["timestep"])
    small = functools.partial(tiny_example, LUMINA)
    failures = failed(check_adapter, ported(layout=square), small)
    assert set(failures) == {"ragged"}
    assert "prompts of 5, 3, 5, 3, 5, 3 tokens, sample i with patch i located" in failures["ragged"]
    assert "row 1: expected [1], got [3]" in failures["ragged"], "the shorter prompts' pictures lie elsewhere"
    assert check_adapter(ported(layout=in_order), small)["ragged"].status == "passed"


def fibo(gate: float) -> Example:
    """FIBO 2: the picture sees a few tokens made of the text, and reads the text in a cross-attention beside it."""
    torch.manual_seed(0)
    model = diffusers.BriaFibo2Transformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=16, injection_layer_ids=(0,),
        perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=8, gist_step=2, gist_min_text_len=4,
        gist_max_text_len=16, axes_dims=(4, 6, 6),
    )  # fmt: skip
    for name, weight in model.eval().requires_grad_(False).named_parameters():
        if name.endswith("cross_attn_gate"):
            weight.fill_(gate)

    def inputs(height: int, width: int, batch: int = 1, sigma: float = 0.5) -> dict[str, Any]:
        return {
            "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
            "timestep": torch.full((batch,), sigma),
            "encoder_hidden_states": torch.randn(batch, 2, 5, 16),
        }

    return Example(model, inputs)


def test_a_route_beside_the_joint_attention_must_be_declared() -> None:
    skip_unless_there(FIBO)
    ported = adapter(FIBO, "layers.*.attention", square, lambda a: a["timestep"])
    failures = failed(check_adapter, ported, functools.partial(fibo, 0.5))
    assert set(failures) == {"text-route"}
    assert "expected nothing, got encoder_hidden_states" in failures["text-route"]
    route = TextRoute("text cross-attention", "one block reads the text beside", modules=("layers.*.cross_attention",))
    check_adapter(attrs.evolve(ported, routes=(route,)), functools.partial(fibo, 0.5))
    elsewhere = attrs.evolve(route, modules=("blocks.*.cross_attention",))
    failures = failed(check_adapter, attrs.evolve(ported, routes=(elsewhere,)), functools.partial(fibo, 0.5))
    assert "modules of the route 'text cross-attention' that match 'blocks.*" in failures["text-route"]


def test_a_gate_that_is_shut_does_not_hide_a_route() -> None:
    skip_unless_there(FIBO)
    ported = adapter(FIBO, "layers.*.attention", square, lambda a: a["timestep"])
    failures = failed(check_adapter, ported, functools.partial(fibo, 0.0))
    assert set(failures) == {"text-route"}
    assert "layers.0.cross_attn_gate" in failures["text-route"]


def test_pooled_text_is_a_route() -> None:
    """Which the built-in adapters declare."""
    failures = failed(check_adapter, attrs.evolve(FLUX, routes=()), functools.partial(example, "flux"))
    assert set(failures) == {"text-route"}
    assert "expected nothing, got pooled_projections" in failures["text-route"]


def test_text_that_moves_nothing_proves_nothing() -> None:
    def deaf() -> Example:
        stock = example("flux")

        def inputs(height: int, width: int, **options: Any) -> dict[str, Any]:
            arguments = stock.inputs(height, width, **{"references": (), **options})
            return {**arguments, "encoder_hidden_states": torch.ones_like(arguments["encoder_hidden_states"])}

        return attrs.evolve(stock, inputs=inputs)

    assert "arguments of the text that move the output" in failed(check_adapter, FLUX, deaf)["text-route"]


@torch.no_grad()
def test_closed_routes_open_again() -> None:
    flux = example("flux")
    route = TextRoute("text", "all of it", modules=("context_embedder",))
    arguments = flux.arguments((2, 3))
    stock = flux.run(arguments, (2, 3))
    with closed(flux.model, [route]):
        assert not torch.equal(flux.run(arguments, (2, 3)), stock)
        assert leaks(FLUX, flux) == {}, "what no text reaches nothing of it moves"
    assert torch.equal(flux.run(arguments, (2, 3)), stock)
