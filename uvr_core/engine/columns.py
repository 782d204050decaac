"""A joint call anew with scaled columns, for the images in which something was located."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import numpy.typing as npt
import torch

from ..intercept.calls import JointCall
from ..ops.columns import scaled_columns
from ..ops.grids import nearest
from ..ops.upload import upload
from ..protocols import ColumnScale, ColumnWeights, RowClass
from ..tokens import Role
from .finite import Finite
from .listed import Classes, Listed

_COLUMN = {field.name: number for number, field in enumerate(attrs.fields(ColumnWeights))}


@attrs.frozen(eq=False)
class Scales:
    """Factors of the columns under the edits of several concepts; b of the B images have something located.

    Attributes:
        some: (b,) int64, these images; None: all of them.
        factors: (b, 3, Sk) float32, by role of the query.
        kept: by role, (b, 1, queries, 1) bool, or None: none of these rows stay as they are.
        changed: (B,) bool, the images in which a factor is not neutral.
    """

    some: torch.Tensor | None
    factors: torch.Tensor
    kept: tuple[torch.Tensor | None, ...]
    changed: torch.Tensor


def with_scaled_columns(
    columns: Sequence[tuple[ColumnScale, Classes]],
    listed: Listed,
    call: JointCall,
    output: torch.Tensor,
    finite: Finite,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """No host sync.

    Args:
        columns: of the concepts so far, whose factors multiply, with the rows (B, N) of each; the last one's are to be
            carried out. Images in which all of these are STOCK stay as they are.
        listed: the last one's rows; output patches that an earlier concept claimed stay as they are.
        output: (B, H, Sq, D) as earlier concepts left it.

    Returns:
        The output, a new tensor if anything changed, and (B,) bool, where a factor is not neutral; None: nowhere.
    """
    scale = columns[-1][0]
    if not (listed.edited != RowClass.STOCK).any():
        return output, None
    key = ("columns", tuple((each, id(classes)) for each, classes in columns), call.keys.tokens)
    scales = listed.once(key, lambda: _scales(columns, listed, call))
    part = call if scales.some is None else call.of_rows(scales.some)
    before = output if scales.some is None else output[scales.some]
    anew: list[tuple[slice, torch.Tensor]] = []
    for role in Role:
        span = call.queries[role]
        if span.stop == span.start or getattr(scale, role.name.lower()) == ColumnWeights():
            continue  # the queries of a role whose every factor is neutral stay as they are
        mask, kept = part.mask, scales.kept[role]
        new = scaled_columns(
            part.query[:, :, span],
            part.key,
            part.value,
            scales.factors[:, role],
            attn_mask=mask if mask is None or mask.shape[2] == 1 else mask[:, :, span],
            scale=part.scale,
        )
        finite.watch(new)
        anew.append((span, new if kept is None else torch.where(kept, before[:, :, span], new)))
    result = output.clone()
    for span, new in anew:
        if scales.some is None:
            result[:, :, span] = new
        else:
            result[:, :, span].index_copy_(0, scales.some, new)
    return result, scales.changed


def _scales(columns: Sequence[tuple[ColumnScale, Classes]], listed: Listed, call: JointCall) -> Scales:
    """What the masks of all concepts say, worked out on the host."""
    factors = np.ones((len(listed.edited), len(Role), call.keys.tokens), np.float32)
    for scale, classes in columns:
        lines = [getattr(scale, role.name.lower()) for role in Role]
        table = np.array([attrs.astuple(weights) for weights in lines], np.float32)
        located = (classes != RowClass.STOCK).any(1)
        factors[located] *= table[:, _key_classes(classes, call)[located]].swapaxes(0, 1)
    some = np.flatnonzero((listed.edited != RowClass.STOCK).any(1))
    kept: list[torch.Tensor | None] = []
    for role in Role:
        rows = np.broadcast_to((factors[some, role] == 1).all(1)[:, None], (len(some), call.queries.count(role)))
        rows = rows | listed.claimed[some] if role == Role.OUTPUT else rows
        kept.append(upload(rows[:, None, :, None], listed.device) if rows.any() else None)
    changed = upload((factors != 1).any((1, 2)), listed.device)
    whole = len(some) == len(factors)
    return Scales(
        None if whole else upload(some, listed.device), upload(factors[some], listed.device), tuple(kept), changed
    )


def _key_classes(classes: Classes, call: JointCall) -> npt.NDArray[np.int64]:
    """(B, Sk): which of the ColumnWeights every key has; a reference token's by what lies there in the output."""
    keys = np.full((len(classes), call.keys.tokens), _COLUMN["text"])
    keys[:, call.keys.output] = _COLUMN["output"]
    if call.layout.references:
        by_row = np.array([_COLUMN[name] for name in ("reference", "facing_core", "facing_ring")])
        faced = [classes[:, nearest(grid, call.layout.grid).numpy()] for grid in call.layout.references]
        keys[:, call.keys.reference] = by_row[np.concatenate(faced, 1)]
    return keys
