"""A joint call of one guidance part: the model's own tensors seen as rows, spans and heads."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
import torch

from uvr_core.adapter import Layout
from uvr_core.intercept.calls import AttentionCall, joint_call, spans_of, with_heads
from uvr_core.intercept.guidance import Part
from uvr_core.intercept.ledger import Forward
from uvr_core.plugins import registry

FLUX, SD3 = (registry().get("adapter", name) for name in ("flux", "sd3"))
LAYOUT = Layout((2, 2))
COND = Part("cond", slice(2, 4))


def attention(tokens: int = 7, heads: int = 4, key_heads: int = 2, **changes: object) -> AttentionCall:
    """A call of four rows: three text tokens and a picture of 2 x 2 patches."""
    generator = torch.Generator().manual_seed(0)
    query, key, value, output = (
        torch.randn(4, count, tokens, 8, generator=generator) for count in (heads, key_heads, key_heads, heads)
    )
    return attrs.evolve(AttentionCall("blocks.0.attn", query, key, value, output, None, None), **changes)


def joint(call: AttentionCall, part: Part = COND) -> object:
    return joint_call(call, FLUX, Forward(0, 0, LAYOUT, 1.0, 4, (part,)), part)


def test_rows_of_a_part_are_views_of_the_models_tensors() -> None:
    call = attention()
    view = joint(call)
    view.output[:] = 7.0
    assert (call.output[2:] == 7).all()
    assert not (call.output[:2] == 7).any()
    assert view.query.data_ptr() == call.query[2:].data_ptr()
    assert (view.keys.text, view.keys.output) == (slice(0, 3), slice(3, 7))
    assert view.layout is LAYOUT


def test_grouped_heads_are_repeated_in_place_of_each() -> None:
    """Head 0 and 1 of the queries read head 0 of the keys, 2 and 3 read head 1."""
    call = attention()
    view = joint(call)
    assert view.key.shape == (2, 4, 7, 8)
    for head in range(4):
        assert torch.equal(view.key[:, head], call.key[2:, head // 2])
        assert torch.equal(view.value[:, head], call.value[2:, head // 2])
    assert with_heads(call.query, 4) is call.query


@pytest.mark.parametrize(
    ("mask", "kept"),
    [
        (lambda: torch.arange(4)[:, None, None, None] * torch.ones(4, 1, 1, 7), [2.0, 3.0]),
        (lambda: torch.full((1, 1, 1, 7), 5.0), [5.0]),
    ],
)
def test_a_mask_goes_with_its_rows(mask: Callable[[], torch.Tensor], kept: list[float]) -> None:
    view = joint(attention(attn_mask=mask()))
    assert view.mask[:, 0, 0, 0].tolist() == kept
    assert view.of_rows(slice(1, 2)).mask[:, 0, 0, 0].tolist() == kept[-1:]


def test_a_part_of_all_rows_takes_all() -> None:
    assert joint(attention(), Part("all", slice(0, 4))).query.shape[0] == 4


def forward(text: int | None = None) -> Forward:
    return Forward(0, 0, LAYOUT, 1.0, 4, (COND,), text)


@pytest.mark.parametrize(
    ("tokens", "joint_of"),
    [(7, ("flux", "sd3")), (4, ()), (3, ())],  # with text; the image alone; less than the image
)
def test_which_call_is_the_joint_one(tokens: int, joint_of: tuple[str, ...]) -> None:
    call = attention(tokens)
    assert tuple(a.name for a in (FLUX, SD3) if spans_of(call, a, forward())) == joint_of


def test_queries_without_text_are_joint_where_the_adapter_says_so() -> None:
    call = attention(4, key=torch.zeros(4, 2, 7, 8), value=torch.zeros(4, 2, 7, 8))
    assert spans_of(call, FLUX, forward()) is None
    assert spans_of(call, attrs.evolve(FLUX, text_output=False), forward())


def test_a_segment_as_long_as_the_output_is_not_joint() -> None:
    """In Qwen-Image 2.1 every segment of text and every source attends in a call of its own, before the output."""
    adapter = attrs.evolve(FLUX, text_output=False)
    output, segment = (
        attention(4, key=torch.zeros(4, 2, keys, 8), value=torch.zeros(4, 2, keys, 8)) for keys in (13, 9)
    )
    assert spans_of(segment, adapter, forward()), "nothing tells, unless the adapter says how much text there is"
    known = forward(9)
    assert spans_of(output, adapter, known)
    assert spans_of(segment, adapter, known) is None
    assert len(known.spans) == 2
    assert spans_of(output, adapter, known) is spans_of(output, adapter, known), "told once"
