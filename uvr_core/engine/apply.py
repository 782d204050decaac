"""Carries edits out: the one place that writes into a tensor of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..intercept.calls import JointCall
from ..ops.noise import blended_rows, matched_noise
from ..ops.project import projected_rows
from ..ops.rows import Rows, rows_of, take_rows, write_rows
from ..protocols import FlowEdit, Projection, RowClass
from .columns import with_scaled_columns
from .finite import Finite
from .reweight import reweighted_rows
from .uncond import UncondText


class Edits:
    """The output of one joint call under the edits of several concepts, in order of rank.

    Args:
        call: the call.
        in_place: nobody else has kept its output, so that rows may be written into it.
        uncond: text of the unconditional part.
        generators: number of rows -> as many generators, for noise.
        finite: watches what is written.

    Attributes:
        output: (B, H, Sq, D), as the edits so far leave it.
    """

    def __init__(
        self,
        call: JointCall,
        in_place: bool,
        uncond: UncondText,
        generators: Callable[[int], list[torch.Generator]],
        finite: Finite,
    ):
        self.call, self.output = call, call.output
        self._in_place, self._uncond, self._generators, self._finite = in_place, uncond, generators, finite
        self._claimed: torch.Tensor | None = None  # (B, N) bool, patches that an earlier concept edits
        self._scales: torch.Tensor | None = None  # (B, 3, Sk), of the columns

    def carry_out(self, edit: FlowEdit) -> torch.Tensor:
        """Apply one concept's edit.

        Returns:
            (B,) bool, on the device: the images in which it changed the output. Rows whose every factor is neutral are
            computed anew, but the rounding in them does not count as a change.
        """
        output = self.output
        changed = torch.zeros(len(output), dtype=torch.bool, device=output.device)
        if edit.columns is not None:
            self.output, scales = with_scaled_columns(
                edit.columns, edit.rows, self.call, output, self._scales, self._claimed, self._finite
            )
            changed = (self.output != output).any(3).any(2).any(1) & (scales != 1).flatten(1).any(1)
            self._scales = scales
        claims = edit.rows != RowClass.STOCK
        classes = edit.rows if self._claimed is None else edit.rows.masked_fill(self._claimed, RowClass.STOCK)
        changed = changed | self._write(edit, classes)
        self._claimed = claims if self._claimed is None else self._claimed | claims
        return changed

    def _write(self, edit: FlowEdit, classes: torch.Tensor) -> torch.Tensor:
        """Rewrite the rows that are not STOCK in classes (B, N).

        Returns:
            (B,) bool, where that changed the output. One host sync.
        """
        call, output = self.call, self.output
        full = torch.zeros(len(classes), call.queries.tokens, dtype=torch.long, device=classes.device)
        full[:, call.queries.output] = classes
        located = (full != RowClass.STOCK, full == RowClass.CORE)
        counts: list[list[int]] = torch.stack(located).sum(2).tolist()  # host sync
        rows = rows_of(located[0], counts[0])
        if rows.width == 0:
            return torch.zeros(len(output), dtype=torch.bool, device=output.device)
        kinds = full.gather(1, rows.index)  # (B, R)
        old = new = take_rows(output, rows)
        meant = torch.zeros_like(rows.valid)
        if edit.reweight is not None and not edit.reweight.neutral:
            new, meant = reweighted_rows(edit.reweight, edit.rows, call, rows, kinds, counts[1], self._uncond)
        if edit.projection is not None:
            projected = self._projected(edit.projection, new, rows, kinds)
            new, meant = projected, meant | _differ(projected, new)
        value = new
        if edit.noise is not None and (edit.noise.core or edit.noise.ring):
            alpha = torch.tensor((0.0, edit.noise.core, edit.noise.ring), device=output.device)[kinds]
            stats: dict[str, Any] = {"mean": 0.0, "std": 1.0} if edit.noise.kind == "unit" else {}
            noise = matched_noise(new, rows, self._generators(len(full)), **stats)
            value, meant = blended_rows(new, noise, alpha), meant | (alpha > 0)
        in_place = not output.requires_grad and (self._in_place or output is not call.output)
        self.output = write_rows(output, value, rows, in_place=in_place)
        after = take_rows(self.output, rows) if value is not new or rows.padded else new.to(output.dtype)
        self._finite.watch(after)
        return (meant & rows.valid & _differ(after, old)).any(1)

    def _projected(self, part: Projection, new: torch.Tensor, rows: Rows, kinds: torch.Tensor) -> torch.Tensor:
        """Rows (B, H, R, D) without the direction."""
        patch = (rows.index - self.call.queries.output.start).clamp_min(0)  # padding: any
        strength = torch.tensor((0.0, part.core, part.ring), device=new.device)[kinds]
        offset = part.offset.gather(1, patch)
        self._finite.watch(part.vector)  # NaN there would project nothing
        self._finite.watch(offset)
        return projected_rows(new, part.vector, offset, strength)


def _differ(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(B, R): which rows of (B, H, R, D) are not bitwise the same."""
    return (one != other).any(3).any(1)
