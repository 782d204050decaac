"""Attention calls: as the stock model makes them, and as the joint call of one guidance part."""

from __future__ import annotations

import functools

import attrs
import torch

from ..adapter import Adapter, Layout
from ..ops.attn_mask import as_4d
from ..tokens import TokenSpans
from .guidance import Part
from .ledger import Forward


@attrs.define(eq=False)
class AttentionCall:
    """One attention call as the stock model made it. All tensors (B, heads, tokens, head_dim).

    `output` is the stock result, before the output projection.
    """

    path: str
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor
    attn_mask: torch.Tensor | None
    scale: float | None


@attrs.frozen(eq=False, slots=False)
class JointCall:
    """The joint attention call of one tap, for the rows of one guidance part; b rows, H heads, head size D.

    Attributes:
        tap: path of the attention module.
        forward: the forward it belongs to: step, noise level, layout.
        part: whose rows these are.
        queries, keys: where text, output and reference lie on either axis.
        query: (b, H, Sq, D), a view of the model's tensor; `output` likewise, the stock result before the output
            projection. The engine alone writes into `output`, and nobody into the others.
        grouped_key, grouped_value: (b, h, Sk, D) as the model has them, h <= H.
        mask: (b|1, H|1, Sq|1, Sk|1), bool (True = keep) or additive, or None.
        scale: factor of the logits; None: D**-0.5.
    """

    tap: str
    forward: Forward
    part: Part
    queries: TokenSpans
    keys: TokenSpans
    query: torch.Tensor
    grouped_key: torch.Tensor
    grouped_value: torch.Tensor
    output: torch.Tensor
    mask: torch.Tensor | None
    scale: float | None

    @functools.cached_property
    def key(self) -> torch.Tensor:
        """(b, H, Sk, D): as many heads as queries have; grouped-query attention repeats them."""
        return with_heads(self.grouped_key, self.query.shape[1])

    @functools.cached_property
    def value(self) -> torch.Tensor:
        """(b, H, Sk, D), as `key`."""
        return with_heads(self.grouped_value, self.query.shape[1])

    @property
    def layout(self) -> Layout:
        return self.forward.layout

    def of_rows(self, rows: slice | torch.Tensor) -> JointCall:
        """The same call for some of its rows."""
        mask = self.mask if self.mask is None or self.mask.shape[0] == 1 else self.mask[rows]
        return attrs.evolve(
            self,
            query=self.query[rows],
            grouped_key=self.grouped_key[rows],
            grouped_value=self.grouped_value[rows],
            output=self.output[rows],
            mask=mask,
        )


def with_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """(b, h, S, D) -> (b, heads, S, D), each head repeated."""
    repeat = heads // tensor.shape[1]
    return tensor if repeat == 1 else tensor.repeat_interleave(repeat, 1)


def spans_of(call: AttentionCall, adapter: Adapter, forward: Forward) -> tuple[TokenSpans, TokenSpans] | None:
    """The spans of queries and of keys, of a joint call of that forward; None: it is an IP-Adapter's, or one over the
    image or the text alone. Told once for each number of queries and keys in a forward."""
    queries, keys = call.query.shape[2], call.key.shape[2]
    if (queries, keys) not in forward.spans:
        spans = TokenSpans.of_call(adapter, forward.layout, queries, keys, forward.text)
        forward.spans[queries, keys] = spans
    return forward.spans[queries, keys]


def joint_call(call: AttentionCall, adapter: Adapter, forward: Forward, part: Part) -> JointCall:
    """A joint call of the stock model, for the rows of one part: views, no copies."""
    spans = spans_of(call, adapter, forward)
    assert spans is not None
    queries, keys = spans
    mask = None
    if call.attn_mask is not None:
        mask = as_4d(call.attn_mask, call.query, call.key)
    whole = JointCall(
        call.path, forward, part, queries, keys, call.query, call.key, call.value, call.output, mask, call.scale
    )
    return whole if part.rows is None else whole.of_rows(part.rows)
