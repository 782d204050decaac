"""Published configurations on the meta device: taps, roles and grids at 1024x1024, without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from published import PATCHES, PUBLISHED, SIDE, SIGMA, Published
from torch import nn

import uvr_core
from uvr_core.adapter import Layout
from uvr_core.errors import AdapterNotFound, TapNotFired
from uvr_core.intercept import forwards
from uvr_core.intercept.calls import AttentionCall
from uvr_core.tokens import TokenSpans

each_model = pytest.mark.parametrize("published", PUBLISHED, ids=[p.source.rpartition("/")[2] for p in PUBLISHED])


def by_source(name: str) -> Published:
    return next(p for p in PUBLISHED if p.source.endswith(name))


@contextmanager
def on_meta(transformer: nn.Module) -> Iterator[None]:
    """Move the arguments to the meta device after UVR has read them: its pre-hook was registered earlier.

    UVR reads the time argument and the ids as values, which meta tensors have not.
    """

    def move(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        assert not args
        return (), {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}

    handle = transformer.register_forward_pre_hook(move, with_kwargs=True)
    try:
        with torch.no_grad():
            yield
    finally:
        handle.remove()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[AttentionCall]:
    """Every attention call of a tapped module in a run."""
    seen: list[AttentionCall] = []
    stock = forwards.intervene

    def spy(call: AttentionCall, *run: Any) -> torch.Tensor | None:
        seen.append(call)
        return stock(call, *run)

    monkeypatch.setattr(forwards, "intervene", spy)
    return seen


def attentions(transformer: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in transformer.named_modules() if hasattr(module, "processor")}


def hooks(transformer: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in transformer.modules())


@each_model
def test_one_forward_at_the_published_size(published: Published, calls: list[AttentionCall]) -> None:
    transformer = published.build()
    assert all(parameter.is_meta for parameter in transformer.parameters())
    assert len(attentions(transformer)) == published.taps + published.side_attention
    stock = {path: module.processor for path, module in attentions(transformer).items()}
    ran: list[nn.Module] = []  # modules of attention, in the order in which they really run
    counters = [
        m.register_forward_hook(lambda m, args, output: ran.append(m)) for m in attentions(transformer).values()
    ]
    before = hooks(transformer)

    reg = uvr_core.attach(transformer)
    assert reg.adapter.name == published.adapter
    heads, size = published.config["num_attention_heads"], published.config["attention_head_dim"]
    assert reg.fingerprint == uvr_core.Fingerprint(published.model, published.taps, heads, size)
    inputs = published.inputs()
    with on_meta(transformer), reg.generation():
        output = transformer(**inputs, return_dict=False)[0]
        run = reg._interceptor.intervention.run
    assert output.is_meta
    assert output.shape == inputs["hidden_states"].shape

    # Every tap once, no other attention, and numbered in the order in which they ran.
    report = reg.report
    assert report is not None
    assert report.fired == report.taps == len(reg.taps) == published.taps
    assert (report.steps, report.passes) == (1, 1)
    assert [call.path for call in calls] == list(reg.taps)
    tapped = [attentions(transformer)[path] for path in reg.taps]
    assert [module for module in ran if any(module is tap for tap in tapped)] == tapped
    assert len(ran) == published.taps + published.side_attention

    # What was read off the arguments.
    layout = Layout((SIDE, SIDE), ((SIDE, SIDE),) * published.references)
    assert (run.sigmas, run.layout) == ([SIGMA], layout)
    assert reg.adapter.image_at == published.image_at

    # What is left of each call when the image is taken away is text, all of it.
    tokens = published.image + published.text
    output_start = 0 if published.image_at == "start" else published.text
    text_start = published.image if published.image_at == "start" else 0
    spans = TokenSpans.of(reg.adapter, layout, tokens)
    assert spans.output == slice(output_start, output_start + PATCHES)
    assert spans.text == slice(text_start, text_start + published.text)
    for call in calls:
        assert call.query.shape == call.key.shape == call.output.shape == (1, heads, tokens, size), call.path
        assert (call.attn_mask is not None) == bool(published.padding), call.path
        assert call.attn_mask is None or call.attn_mask.shape[-1] == tokens

    assert all(hasattr(type(module.processor), "_uvr_taps") for module in tapped)
    reg.detach()
    assert {path: module.processor for path, module in attentions(transformer).items()} == stock
    assert not any(hasattr(type(module.processor), "_uvr_taps") for module in attentions(transformer).values())
    assert "cache_context" not in transformer.__dict__
    assert hooks(transformer) == before == len(counters)


def test_skipped_blocks_are_refused_at_the_published_size() -> None:
    """Skip-layer guidance as SD3.5-medium's model card has it: blocks 7 to 9 do not run in one of the passes."""
    published = by_source("stable-diffusion-3.5-medium")
    transformer = published.build()
    with uvr_core.attach(transformer), on_meta(transformer):
        with pytest.raises(TapNotFired, match=r"tap 8 of 24 \(transformer_blocks\.7\.attn\) did not fire"):
            transformer(**published.inputs(), skip_layers=[7, 8, 9])


class Flux9Transformer2DModel(nn.Module):
    """A class that no adapter knows."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 2)


def test_an_unknown_class_is_refused_and_the_nearest_is_named() -> None:
    model = Flux9Transformer2DModel()
    with pytest.raises(AdapterNotFound) as error:
        uvr_core.attach(model)
    assert "no adapter recognises Flux9Transformer2DModel" in str(error.value)
    assert "'FluxTransformer2DModel'" in str(error.value)
    assert "QwenImageTransformer2DModel" not in str(error.value)
    assert hooks(model) == 0
