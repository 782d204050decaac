"""Carries edits out: the one place that writes into a tensor of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..intercept.calls import JointCall
from ..ops.noise import blended_rows, matched_noise
from ..ops.project import projected_rows
from ..ops.rows import take_rows, write_rows
from ..protocols import ColumnScale, FlowEdit, Projection
from .columns import with_scaled_columns
from .finite import Finite
from .listed import Classes, Listed, Lister
from .reweight import reweighted_rows
from .uncond import UncondText


class Edits:
    """The output of one joint call under the edits of several concepts, in order of rank. No host sync.

    Args:
        call: the call.
        in_place: nobody else has kept its output, so that rows may be written into it.
        uncond: text of the unconditional part.
        generators: number of rows -> as many generators, for noise.
        finite: watches what is written.
        lister: lists the rows.

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
        lister: Lister,
    ):
        self.call, self.output = call, call.output
        self._in_place, self._uncond, self._generators, self._finite = in_place, uncond, generators, finite
        self._lister = lister
        self._rows: list[torch.Tensor] = []  # (B, N) RowClass of each edit so far
        self._columns: list[tuple[ColumnScale, Classes]] = []

    def carry_out(self, edit: FlowEdit) -> torch.Tensor | None:
        """Apply one concept's edit.

        Returns:
            (B,) bool, on the device: the images in which it changed the output; None: in none. Rows whose every factor
            is neutral are computed anew, but the rounding in them does not count as a change.
        """
        self._rows.append(edit.rows)
        listed = self._lister.listed(self._rows, self.call)
        output, changed = self.output, None
        if edit.columns is not None:
            self._columns.append((edit.columns, listed.edited))
            self.output, meant = with_scaled_columns(self._columns, listed, self.call, output, self._finite)
            if meant is not None:
                changed = (self.output != output).any(dim=(1, 2, 3)) & meant
        rewritten = self._write(edit, listed) if edit.rewrites and listed.rows.width else None
        return rewritten if changed is None else changed if rewritten is None else changed | rewritten

    def _write(self, edit: FlowEdit, listed: Listed) -> torch.Tensor:
        """Rewrite the listed rows.

        Returns:
            (B,) bool, where that changed the output.
        """
        call, output, rows = self.call, self.output, listed.rows
        old = new = take_rows(output, rows)
        meant = None
        if edit.reweight is not None and not edit.reweight.neutral:
            new, meant = reweighted_rows(edit.reweight, listed, call, self._uncond)
        if edit.projection is not None:
            projected = self._projected(edit.projection, new, listed)
            differs = (projected != new).any(dim=(1, 3))
            new, meant = projected, differs if meant is None else meant | differs
        if edit.noise is not None and (edit.noise.core or edit.noise.ring):
            alpha = listed.by_kind(0.0, edit.noise.core, edit.noise.ring)
            stats: dict[str, Any] = {"mean": 0.0, "std": 1.0} if edit.noise.kind == "unit" else {}
            noise = matched_noise(new, rows, self._generators(len(alpha)), **stats)
            new, noisy = blended_rows(new, noise, alpha), alpha > 0
            meant = noisy if meant is None else meant | noisy
        in_place = not output.requires_grad and (self._in_place or output is not call.output)
        self.output = write_rows(output, new, rows, in_place=in_place)
        after = take_rows(self.output, rows) if rows.padded else new.to(output.dtype)
        self._finite.watch(after)
        if meant is None or meant.shape[1] == 1:  # padding repeats a row that is listed or stands as it was
            differs = (after != old).any(dim=(1, 2, 3))
            return differs if meant is None else differs & meant[:, 0]
        differs = (after != old).any(dim=(1, 3)) & meant
        return (differs & rows.valid if rows.padded else differs).any(1)

    def _projected(self, part: Projection, new: torch.Tensor, listed: Listed) -> torch.Tensor:
        """Rows (B, H, R, D) without the direction."""
        offset = part.offset.gather(1, listed.patches)
        self._finite.watch(part.vector)  # NaN there would project nothing
        self._finite.watch(offset)
        return projected_rows(new, part.vector, offset, listed.by_kind(0.0, part.core, part.ring))
