"""A joint call anew with scaled columns, for the images in which something was located."""

from __future__ import annotations

import torch

from ..intercept.calls import JointCall
from ..ops.columns import scaled_columns
from ..ops.grids import facing
from ..protocols import (
    K_FACING_CORE,
    K_FACING_RING,
    K_OUTPUT,
    K_REFERENCE,
    K_TEXT,
    Q_OUTPUT,
    Q_REFERENCE,
    Q_TEXT,
    FlowEdit,
)
from .finite import Finite


def with_scaled_columns(
    edit: FlowEdit,
    call: JointCall,
    output: torch.Tensor,
    before: torch.Tensor | None,
    claimed: torch.Tensor | None,
    finite: Finite,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One host sync.

    Args:
        edit: its `columns` are not None.
        output: (B, H, Sq, D) as earlier concepts left it.
        before: (B, 3, Sk), scales of earlier concepts, which these multiply; None: there are none.
        claimed: (B, N) bool, output patches that stay as they are; None: there are none.

    Returns:
        The output, a new tensor if anything changed, and all scales (B, 3, Sk).
    """
    assert edit.columns is not None
    if before is None:
        before = torch.ones(len(output), 3, call.keys.tokens, device=output.device)
    some = (edit.row_class > 0).any(1).nonzero().flatten()  # host sync
    if not len(some):
        return output, before
    table, part = edit.columns.table, call if len(some) == len(output) else call.of_rows(some)
    classes = _key_classes(edit.row_class[some], call)
    scales = before[some] * torch.tensor(table, device=output.device)[:, classes].transpose(0, 1)  # (b, 3, Sk)

    def anew(role: int, span: slice) -> torch.Tensor:
        mask = part.mask
        new = scaled_columns(
            part.query[:, :, span],
            part.key,
            part.value,
            scales[:, role],
            attn_mask=mask if mask is None or mask.shape[2] == 1 else mask[:, :, span],
            scale=part.scale,
        )
        finite.watch(new)
        kept = (scales[:, role] == 1).all(1)[:, None]
        if claimed is not None and role == Q_OUTPUT:
            kept = kept | claimed[some]
        return torch.where(kept[:, None, :, None], output[:, :, span][some], new)

    spans = ((Q_TEXT, call.queries.text), (Q_OUTPUT, call.queries.output), (Q_REFERENCE, call.queries.reference))
    new = [  # the queries of a role whose every factor is neutral stay as they are
        (span, anew(role, span))
        for role, span in spans
        if span.start < span.stop and any(factor != 1.0 for factor in table[role])
    ]
    result = output.clone()
    for span, rows in new:
        result[:, :, span].index_copy_(0, some, rows)
    return result, before.index_copy(0, some, scales)


def _key_classes(row_class: torch.Tensor, call: JointCall) -> torch.Tensor:
    """(b, Sk): text, output, or reference, by what lies at the same place in the output."""
    classes = torch.full((len(row_class), call.keys.tokens), K_TEXT, device=row_class.device)
    classes[:, call.keys.output] = K_OUTPUT
    if call.layout.references:
        by_row = torch.tensor([K_REFERENCE, K_FACING_CORE, K_FACING_RING], device=row_class.device)
        faced = [facing(row_class, call.layout.grid, grid) for grid in call.layout.references]
        classes[:, call.keys.reference] = by_row[torch.cat(faced, 1)]
    return classes
