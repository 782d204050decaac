"""A joint call anew with scaled columns, for the images in which something was located."""

from __future__ import annotations

import attrs
import torch

from ..intercept.calls import JointCall
from ..ops.columns import scaled_columns
from ..ops.grids import facing
from ..protocols import ColumnScale, ColumnWeights, RowClass
from ..tokens import Role
from .finite import Finite

_COLUMN = {field.name: number for number, field in enumerate(attrs.fields(ColumnWeights))}


def with_scaled_columns(
    columns: ColumnScale,
    rows: torch.Tensor,
    call: JointCall,
    output: torch.Tensor,
    before: torch.Tensor | None,
    claimed: torch.Tensor | None,
    finite: Finite,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One host sync.

    Args:
        rows: (B, N) RowClass; images in which all are STOCK stay as they are.
        output: (B, H, Sq, D) as earlier concepts left it.
        before: (B, 3, Sk), scales of earlier concepts, which these multiply; None: there are none.
        claimed: (B, N) bool, output patches that stay as they are; None: there are none.

    Returns:
        The output, a new tensor if anything changed, and all scales (B, 3, Sk).
    """
    if before is None:
        before = torch.ones(len(output), 3, call.keys.tokens, device=output.device)
    some = (rows != RowClass.STOCK).any(1).nonzero().flatten()  # host sync
    if not len(some):
        return output, before
    part = call if len(some) == len(output) else call.of_rows(some)
    roles = [getattr(columns, role.name.lower()) for role in Role]  # of the queries
    table = torch.tensor([attrs.astuple(weights) for weights in roles], dtype=torch.float32, device=output.device)
    scales = before[some] * table[:, _key_classes(rows[some], call)].transpose(0, 1)  # (b, 3, Sk)

    def anew(role: Role, span: slice) -> torch.Tensor:
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
        if claimed is not None and role == Role.OUTPUT:
            kept = kept | claimed[some]
        return torch.where(kept[:, None, :, None], output[:, :, span][some], new)

    new = [  # the queries of a role whose every factor is neutral stay as they are
        (call.queries[role], anew(role, call.queries[role]))
        for role in Role
        if call.queries.count(role) and roles[role] != ColumnWeights()
    ]
    result = output.clone()
    for span, values in new:
        result[:, :, span].index_copy_(0, some, values)
    return result, before.index_copy(0, some, scales)


def _key_classes(rows: torch.Tensor, call: JointCall) -> torch.Tensor:
    """(b, Sk): which of the ColumnWeights every key has; a reference token's by what lies there in the output."""
    classes = torch.full((len(rows), call.keys.tokens), _COLUMN["text"], device=rows.device)
    classes[:, call.keys.output] = _COLUMN["output"]
    if call.layout.references:
        by_row = torch.tensor([_COLUMN[name] for name in ("reference", "facing_core", "facing_ring")]).to(rows.device)
        faced = [facing(rows, call.layout.grid, grid) for grid in call.layout.references]
        classes[:, call.keys.reference] = by_row[torch.cat(faced, 1)]
    return classes
