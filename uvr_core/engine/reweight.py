"""Rows of a joint call's attention under the factors of an edit."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from ..intercept.calls import JointCall
from ..ops.attn_mask import mask_rows
from ..ops.restrict import log_weights, redirected_rows, restricted_rows
from ..ops.rows import Rows, rows_of, write_rows
from ..protocols import KeyClass, KeyWeights, Reweight, RowClass
from ..tokens import TokenSpans
from .uncond import Text, UncondText


def reweighted_rows(
    part: Reweight,
    classes: torch.Tensor,
    call: JointCall,
    rows: Rows,
    kinds: torch.Tensor,
    cores: Sequence[int],
    uncond: UncondText,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The listed rows anew.

    Args:
        classes: (B, N) RowClass of all output patches: keys that are not STOCK are LOCATED.
        rows: query rows, R at most.
        kinds: (B, R), CORE or RING.
        cores: how many of each image's rows are CORE.
        uncond: the other text, where the edit asks for it.

    Returns:
        (B, H, R, D), and (B, R) bool: the rows that have a factor which is not neutral.
    """
    core, ring, spans = part.core, part.ring, call.keys
    other = uncond.at(call) if part.text == "uncond" else None
    if part.text == "uncond" and other is None:
        core, ring = (attrs.evolve(weights, text=0.0) for weights in (core, ring))
    if other is not None:
        spans = spans.with_text(other.key.shape[2])
    table = torch.tensor([attrs.astuple(line) for line in (KeyWeights(), core, ring)], dtype=torch.float32)
    every = torch.arange(len(RowClass), device=kinds.device).expand(len(kinds), -1)
    weights = log_weights(every, _key_classes(classes, spans), table)  # (B, 3, Sk)
    for span, factor in ((spans.text, part.text_factor), (spans.reference, part.reference_factor)):
        if factor is not None:
            weights[:, :, span] += factor.log()[:, None]
    if other is not None:
        return _redirected(call, rows, kinds, weights, other), torch.ones_like(rows.valid)
    meant = (weights != 0).any(-1).gather(1, kinds)
    return _by_class(call, rows, kinds, cores, weights, (core, ring)), meant


def _key_classes(classes: torch.Tensor, spans: TokenSpans) -> torch.Tensor:
    """(B, Sk): what every key is to a row."""
    keys = torch.full((len(classes), spans.tokens), KeyClass.TEXT, device=classes.device)
    keys[:, spans.reference] = KeyClass.REFERENCE
    keys[:, spans.output] = torch.where(classes != RowClass.STOCK, KeyClass.LOCATED, KeyClass.SAFE)
    return keys


def _redirected(call: JointCall, rows: Rows, kinds: torch.Tensor, weights: torch.Tensor, other: Text) -> torch.Tensor:
    """Rows (B, H, R, D) that see other text in place of their own."""
    patch = (rows.index - call.queries.output.start).clamp_min(0)  # padding: any
    return redirected_rows(
        call.query,
        call.key,
        call.value,
        rows,
        call.keys.text,
        other.key,
        other.value,
        weights[torch.arange(len(kinds), device=kinds.device)[:, None], kinds],  # (B, R, Sk)
        attn_mask=call.mask,
        other_mask=None if other.mask is None else mask_rows(other.mask, patch),
        scale=call.scale,
    )


def _by_class(
    call: JointCall,
    rows: Rows,
    kinds: torch.Tensor,
    cores: Sequence[int],
    weights: torch.Tensor,
    factors: tuple[KeyWeights, KeyWeights],
) -> torch.Tensor:
    """Rows (B, H, R, D) under the log weights (B, 3, Sk) of their class.

    One fused call per class, or one for both if their factors are the same, without the text and reference keys
    that the class does not see at all.
    """

    core, ring = factors

    def attend(some: Rows, kind: RowClass) -> torch.Tensor:
        seen, mask = seen_keys(core if kind == RowClass.CORE else ring, call.keys), call.mask
        return restricted_rows(
            call.query,
            call.key[:, :, seen],
            call.value[:, :, seen],
            some,
            weights[:, kind : kind + 1, seen],
            attn_mask=mask if mask is None or mask.shape[3] == 1 else mask[..., seen],
            scale=call.scale,
        )

    if core == ring:
        return attend(rows, RowClass.CORE)
    new = call.query.new_zeros(*call.query.shape[:2], rows.width, call.query.shape[3])
    rings = [count - core for count, core in zip(rows.counts, cores, strict=True)]
    for kind, counts in ((RowClass.CORE, cores), (RowClass.RING, rings)):
        slots = rows_of((kinds == kind) & rows.valid, counts)
        if slots.width:
            some = Rows(rows.index.gather(1, slots.index), slots.valid, slots.counts)
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
