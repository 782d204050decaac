"""Tokens that lie otherwise in each sample: gathered before a call is read or edited, scattered after."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
import pytest
import torch
from driven import Driven, plan_of
from runner import make_bank

from uvr_core.adapter import Layout
from uvr_core.errors import AdapterMismatch
from uvr_core.intercept.calls import AttentionCall
from uvr_core.intercept.intervention import Intervention
from uvr_core.intercept.ledger import Run
from uvr_plugins.detectors import Oracle
from uvr_plugins.policies import Block

GRID, TEXTS = (2, 3), (5, 7)
PATCHES, TOKENS = 6, 13
STARTS = torch.tensor(TEXTS)[:, None] + torch.arange(PATCHES)  # where each sample's patches lie


def ragged(tokens: int) -> torch.Tensor:
    """Text, picture and padding, of 5 and of 7 text tokens; the adapter's order: text, padding, picture."""
    every = torch.arange(tokens)
    return torch.stack([torch.cat([every[:n], every[n + PATCHES :], every[n : n + PATCHES]]) for n in TEXTS])


LAYOUT = Layout(GRID, order=ragged)


def attention(heads: int = 2, mask: torch.Tensor | None = None) -> AttentionCall:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, TOKENS, 8, generator=generator) for _ in range(3))
    if mask is None:
        mask = torch.ones(2, 1, 1, TOKENS, dtype=torch.bool)
        mask[0, ..., 11:] = False  # the padding of the shorter prompt
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
    return AttentionCall("a", query, key, value, output, mask, None)


def located(patch: int | None) -> np.ndarray:
    masks = np.zeros((2, *GRID), bool)
    if patch is not None:
        masks[1].flat[patch] = True
    return masks


def drive(patch: int | None, layout: Layout = LAYOUT, call: AttentionCall | None = None) -> torch.Tensor | None:
    run = Driven([plan_of(make_bank(), Oracle(located(patch)), attrs.evolve(Block(), ring=0, margin=0))])
    return run.forward(call or attention(), 0.9, layout)


@pytest.mark.parametrize("patch", range(PATCHES))
def test_the_located_patch_of_the_longer_prompt_is_edited_and_no_other(patch: int) -> None:
    """Without an order the row that this patch has in the shorter prompt's sample would be taken."""
    call = attention()
    edited = drive(patch)
    assert edited is not None
    changed = (edited != call.output).any(-1).any(1)
    expected = torch.zeros(2, TOKENS, dtype=torch.bool)
    expected[1, STARTS[1, patch]] = True
    assert torch.equal(changed, expected)
    row, picture = STARTS[1, patch], STARTS[1]
    logits = call.query[1, :, row, None] @ call.key[1][:, picture].mT * 8**-0.5
    torch.testing.assert_close(edited[1, :, row, None], logits.softmax(-1) @ call.value[1][:, picture])


@pytest.mark.parametrize(
    "mask",
    [
        torch.rand(2, 1, TOKENS, TOKENS, generator=torch.Generator().manual_seed(3)) > 0.2,
        torch.zeros(1, 1, TOKENS, TOKENS),
        torch.zeros(TOKENS, TOKENS),
    ],
)
def test_a_mask_is_put_in_order_with_its_tokens(mask: torch.Tensor) -> None:
    call = attention(mask=mask.clone())
    edited = drive(2, call=call)
    assert edited is not None
    row, picture = STARTS[1, 2], STARTS[1]
    bias = mask.expand(2, 1, TOKENS, TOKENS)[1, 0, row, picture]
    bias = torch.zeros(PATCHES).masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else bias
    logits = call.query[1, :, row, None] @ call.key[1][:, picture].mT * 8**-0.5 + bias
    torch.testing.assert_close(edited[1, :, row, None], logits.softmax(-1) @ call.value[1][:, picture])


def test_nothing_located_leaves_every_row_as_it_was() -> None:
    call = attention()
    edited = drive(None, call=call)
    assert edited is None or torch.equal(edited, call.output)


def test_an_idle_tap_is_not_put_in_order() -> None:
    """The order is not even asked for once nothing is looked for and nothing is located."""
    asked: list[int] = []
    layout = attrs.evolve(LAYOUT, order=lambda tokens: (asked.append(tokens), ragged(tokens))[1])
    plan = plan_of(make_bank(), Oracle(located(None)), Block())
    run = Driven([attrs.evolve(plan, window=(1.0, 0.8))])
    run.forward(attention(), 0.9, layout)
    assert asked
    asked.clear()
    assert run.forward(attention(), 0.5, layout) is None
    assert not asked


def test_an_intervention_that_does_not_say_is_never_idle() -> None:
    assert not Intervention(Run(("a",))).idle("a")


@pytest.mark.parametrize(
    "order",
    [
        lambda tokens: torch.zeros(2, tokens, dtype=torch.long),
        lambda tokens: torch.arange(tokens).expand(1, -1),
        lambda tokens: torch.arange(tokens),
        lambda tokens: torch.arange(tokens - 1).expand(2, -1),
    ],
)
def test_what_is_no_order_of_the_tokens_is_refused(order: Callable[[int], torch.Tensor]) -> None:
    with pytest.raises(AdapterMismatch, match="order of 13 tokens is no permutation for each of 2 samples"):
        drive(0, Layout(GRID, order=order))
