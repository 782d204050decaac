"""Rows of a joint call's attention under the factors of an edit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..intercept.calls import JointCall
from ..ops.attn_mask import mask_rows
from ..ops.restrict import log_weights, redirected_rows, restricted_rows
from ..ops.rows import Rows, rows_of, write_rows
from ..protocols import CORE, LOCATED, REFERENCE, RING, SAFE, TEXT, FlowEdit
from ..tokens import TokenSpans
from .uncond import Text, UncondText

Table = list[list[float]]


def reweighted_rows(
    edit: FlowEdit,
    call: JointCall,
    rows: Rows,
    row_class: torch.Tensor,
    cores: Sequence[int],
    uncond: UncondText,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The listed rows anew.

    Args:
        rows: query rows, R at most.
        row_class: (B, R), CORE or RING.
        cores: how many of each image's rows are CORE.
        uncond: the other text, where the edit asks for it.

    Returns:
        (B, H, R, D), and (B, R) bool: the rows that have a factor which is not neutral.
    """
    table, spans = [list(line) for line in edit.table], call.keys
    other = uncond.at(call) if edit.text == "unconditional" else None
    if edit.text == "unconditional" and other is None:
        table[CORE][TEXT] = table[RING][TEXT] = 0.0
    if other is not None:
        spans = spans.with_text(other.key.shape[2])
    every = torch.arange(len(table), device=row_class.device).expand(len(row_class), -1)
    weights = log_weights(every, _key_classes(edit, spans), torch.tensor(table))  # (B, 3, Sk)
    for span, factor in ((spans.text, edit.text_factor), (spans.reference, edit.reference_factor)):
        if factor is not None:
            weights[:, :, span] += factor.log()[:, None]
    if other is not None:
        return _redirected(call, rows, row_class, weights, other), torch.ones_like(rows.valid)
    meant = (weights != 0).any(-1).gather(1, row_class)
    return _by_class(call, rows, row_class, cores, weights, table), meant


def _key_classes(edit: FlowEdit, spans: TokenSpans) -> torch.Tensor:
    """(B, Sk): what every key is to a row."""
    classes = torch.full((len(edit.row_class), spans.tokens), TEXT, device=edit.row_class.device)
    classes[:, spans.reference] = REFERENCE
    classes[:, spans.output] = torch.where(edit.row_class > 0, LOCATED, SAFE)
    return classes


def _redirected(
    call: JointCall, rows: Rows, row_class: torch.Tensor, weights: torch.Tensor, other: Text
) -> torch.Tensor:
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
        weights[torch.arange(len(row_class), device=row_class.device)[:, None], row_class],  # (B, R, Sk)
        attn_mask=call.mask,
        other_mask=None if other.mask is None else mask_rows(other.mask, patch),
        scale=call.scale,
    )


def _by_class(
    call: JointCall,
    rows: Rows,
    row_class: torch.Tensor,
    cores: Sequence[int],
    weights: torch.Tensor,
    table: Table,
) -> torch.Tensor:
    """Rows (B, H, R, D) under the log weights (B, 3, Sk) of their class.

    One fused call per class, or one for both if their factors are the same, without the text and reference keys
    that the class does not see at all.
    """

    def attend(some: Rows, kind: int) -> torch.Tensor:
        seen, mask = seen_keys(table[kind], call.keys), call.mask
        return restricted_rows(
            call.query,
            call.key[:, :, seen],
            call.value[:, :, seen],
            some,
            weights[:, kind : kind + 1, seen],
            attn_mask=mask if mask is None or mask.shape[3] == 1 else mask[..., seen],
            scale=call.scale,
        )

    if table[CORE] == table[RING]:
        return attend(rows, CORE)
    new = call.query.new_zeros(*call.query.shape[:2], rows.width, call.query.shape[3])
    rings = [count - core for count, core in zip(rows.counts, cores, strict=True)]
    for kind, counts in ((CORE, cores), (RING, rings)):
        slots = rows_of((row_class == kind) & rows.valid, counts)
        if slots.width:
            some = Rows(rows.index.gather(1, slots.index), slots.valid, slots.counts)
            new = write_rows(new, attend(some, kind), slots, in_place=True)
    return new


def seen_keys(factors: Sequence[float], spans: TokenSpans) -> slice:
    """The keys between the first and the last that a row with these factors sees (by text, ..., reference)."""
    start, stop = 0, spans.tokens
    text, reference = (spans.text, factors[TEXT]), (spans.reference, factors[REFERENCE])
    for span, factor in (text, reference, text):
        if factor == 0.0 and span.start == start:
            start = span.stop
        elif factor == 0.0 and span.stop == stop:
            stop = span.start
    return slice(start, stop)
