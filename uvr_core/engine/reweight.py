"""Rows of a joint call's attention under the factors of an edit."""

from __future__ import annotations

import functools

import attrs
import numpy as np
import torch

from ..intercept.calls import JointCall
from ..ops.attn_mask import mask_rows
from ..ops.restrict import log_weights, redirected_rows, restricted_rows
from ..ops.rows import Rows, write_rows
from ..ops.upload import upload
from ..protocols import KeyClass, KeyWeights, Reweight, RowClass
from ..tokens import TokenSpans
from .listed import Listed
from .uncond import Text, UncondText


def reweighted_rows(
    part: Reweight, listed: Listed, call: JointCall, uncond: UncondText
) -> tuple[torch.Tensor, torch.Tensor]:
    """The listed rows anew. No host sync.

    Args:
        listed: query rows, R at most.
        uncond: the other text, where the edit asks for it.

    Returns:
        (B, H, R, D), and (B, R) bool: the rows that have a factor which is not neutral; (B, 1) where an image's rows
        are alike in that.
    """
    core, ring, spans = part.core, part.ring, call.keys
    other = uncond.at(call) if part.text == "uncond" else None
    if part.text == "uncond" and other is None:
        core, ring = (attrs.evolve(weights, text=0.0) for weights in (core, ring))
    if other is not None:
        spans = spans.with_text(other.key.shape[2])
    weights, meant = listed.once(
        ("weights", core, ring, spans.tokens), functools.partial(_weights, listed, core, ring, spans)
    )
    factors = [
        (span, factor)
        for span, factor in ((spans.text, part.text_factor), (spans.reference, part.reference_factor))
        if factor is not None
    ]
    if factors:
        weights = weights.clone()
        for span, factor in factors:
            weights[:, :, span].add_(factor.log()[:, None])
        meant = (weights != 0).any(-1)
        meant = meant[:, RowClass.CORE, None] if core == ring else meant.gather(1, listed.kinds)  # (B, 1) or (B, R)
    seen = min(core.located, ring.located) > 0 and call.mask is None  # every listed row sees itself
    if other is not None:
        return _redirected(call, listed, weights, other, seen), torch.ones_like(listed.rows.valid[:, :1])
    return _by_class(call, listed, weights, (core, ring), seen), meant


def _weights(
    listed: Listed, core: KeyWeights, ring: KeyWeights, spans: TokenSpans
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, Sk) float32, log factors of every key for each class of row; and (B, R) bool, where one is not neutral, or
    (B, 1) where that holds for all rows of an image or for none."""
    edited = listed.edited != RowClass.STOCK
    keys = np.full((len(edited), spans.tokens), int(KeyClass.TEXT))  # padding too: it carries what it read of the text
    keys[:, spans.reference] = KeyClass.REFERENCE
    keys[:, spans.output] = np.where(edited, int(KeyClass.LOCATED), int(KeyClass.SAFE))
    table = torch.tensor([attrs.astuple(line) for line in (KeyWeights(), core, ring)], dtype=torch.float32)
    every = torch.arange(len(RowClass)).expand(len(keys), -1)
    weights = log_weights(every, torch.from_numpy(keys), table).numpy()
    meant = np.take_along_axis((weights != 0).any(-1), listed.host_kinds, 1)
    some = [line[kinds != RowClass.STOCK] for line, kinds in zip(meant, listed.host_kinds, strict=True)]
    if all(line.all() or not line.any() for line in some):
        meant = np.array([[line.any()] for line in some])
    return upload(weights, listed.device), upload(meant, listed.device)


def _redirected(call: JointCall, listed: Listed, weights: torch.Tensor, other: Text, seen: bool) -> torch.Tensor:
    """Rows (B, H, R, D) that see other text in place of their own."""
    first = torch.arange(len(weights), device=weights.device)[:, None]
    return redirected_rows(
        call.query,
        call.key,
        call.value,
        listed.rows,
        call.keys.text,
        other.key,
        other.value,
        weights[first, listed.kinds],  # (B, R, Sk)
        attn_mask=call.mask,
        other_mask=None if other.mask is None else mask_rows(other.mask, listed.patches),
        scale=call.scale,
        seen=seen and other.mask is None,
    )


def _by_class(
    call: JointCall, listed: Listed, weights: torch.Tensor, factors: tuple[KeyWeights, KeyWeights], seen: bool
) -> torch.Tensor:
    """Rows (B, H, R, D) under the log weights (B, 3, Sk) of their class.

    One fused call per class, or one for both if their factors are the same, without the text and reference keys
    that the class does not see at all.
    """
    core, ring = factors

    def attend(some: Rows, kind: RowClass) -> torch.Tensor:
        keys, mask = seen_keys(core if kind == RowClass.CORE else ring, call.keys), call.mask
        return restricted_rows(
            call.query,
            call.key[:, :, keys],
            call.value[:, :, keys],
            some,
            weights[:, kind : kind + 1, keys],
            attn_mask=mask if mask is None or mask.shape[3] == 1 else mask[..., keys],
            scale=call.scale,
            seen=seen,
        )

    if core == ring:
        return attend(listed.rows, RowClass.CORE)
    batch, heads, _, size = call.query.shape
    new = call.query.new_zeros(batch, listed.rows.width, heads, size).transpose(1, 2)  # as the model's own lie
    for kind in (RowClass.CORE, RowClass.RING):
        some, slots = listed.of_kind(kind)
        if slots.width:
            new = write_rows(new, attend(some, kind), slots, in_place=True)
    return new


def seen_keys(factors: KeyWeights, spans: TokenSpans) -> slice:
    """The keys between the first and the last that a row with these factors sees (by text, ..., reference)."""
    start, stop = 0, spans.tokens
    text, reference = (spans.text, factors.text), (spans.reference, factors.reference)
    for span, factor in (text, reference, text):
        if factor == 0.0 and span.start == start:
            start = span.stop
        elif factor == 0.0 and span.stop == stop:
            stop = span.start
    return slice(start, stop)
