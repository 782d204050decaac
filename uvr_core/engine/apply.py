"""Carries edits out: the one place that writes into a tensor of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import edits
from ..intercept.calls import JointCall
from ..ops.noise import blended_rows, matched_noise
from ..ops.project import projected_rows
from ..ops.rows import rows_of, take_rows, write_rows
from ..protocols import CORE, STOCK, FlowEdit
from ..tokens import Role
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

    def carry_out(self, edit: FlowEdit, policy: str) -> torch.Tensor:
        """Apply one concept's edit; `policy` is named in errors.

        Returns:
            (B,) bool, on the device: the images in which it changed the output. Rows whose every factor is neutral are
            computed anew, but the rounding in them does not count as a change.

        Raises:
            UVRError: the edit cannot be carried out as it says.
        """
        call, output = self.call, self.output
        edits.check(
            edit,
            policy,
            batch=len(output),
            patches=call.layout.output,
            text=call.keys.count(Role.TEXT),
            reference=call.keys.count(Role.REFERENCE),
            width=output.shape[1] * output.shape[3],
        )
        changed = torch.zeros(len(output), dtype=torch.bool, device=output.device)
        if edit.columns is not None:
            self.output, scales = with_scaled_columns(edit, call, output, self._scales, self._claimed, self._finite)
            changed = (self.output != output).any(3).any(2).any(1) & (scales != 1).flatten(1).any(1)
            self._scales = scales
        claims = edit.row_class > 0
        row_class = edit.row_class if self._claimed is None else edit.row_class.masked_fill(self._claimed, STOCK)
        changed = changed | self._write(edit, row_class)
        self._claimed = claims if self._claimed is None else self._claimed | claims
        return changed

    def _write(self, edit: FlowEdit, row_class: torch.Tensor) -> torch.Tensor:
        """Rewrite the rows of a class above 0; returns (B,) bool, where that changed the output. One host sync."""
        call, output = self.call, self.output
        full = torch.zeros(len(row_class), call.queries.tokens, dtype=torch.long, device=row_class.device)
        full[:, call.queries.output] = row_class
        located = (full > 0, full == CORE)
        counts: list[list[int]] = torch.stack(located).sum(2).tolist()  # host sync
        rows = rows_of(located[0], counts[0])
        if rows.width == 0:
            return torch.zeros(len(output), dtype=torch.bool, device=output.device)
        row_class = full.gather(1, rows.index)
        old = new = take_rows(output, rows)
        meant = torch.zeros_like(rows.valid)
        plain = edit.text == "own" and edit.text_factor is None and edit.reference_factor is None
        if not plain or any(factor != 1.0 for line in edit.table[1:] for factor in line):
            new, meant = reweighted_rows(edit, call, rows, row_class, counts[1], self._uncond)
        if edit.projection is not None:
            patch = (rows.index - call.queries.output.start).clamp_min(0)  # padding: any
            strength = torch.tensor(edit.projection.strength, device=output.device)[row_class]
            offset = edit.projection.offset.gather(1, patch)
            self._finite.watch(edit.projection.vector)  # NaN there would project nothing
            self._finite.watch(offset)
            projected = projected_rows(new, edit.projection.vector, offset, strength)
            new, meant = projected, meant | _differ(projected, new)
        value = new
        if any(edit.alpha):
            alpha = torch.tensor(edit.alpha, device=output.device)[row_class]
            stats: dict[str, Any] = {"mean": 0.0, "std": 1.0} if edit.noise == "unit" else {}
            noise = matched_noise(new, rows, self._generators(len(full)), **stats)
            value, meant = blended_rows(new, noise, alpha), meant | (alpha > 0)
        in_place = not output.requires_grad and (self._in_place or output is not call.output)
        self.output = write_rows(output, value, rows, in_place=in_place)
        after = take_rows(self.output, rows) if value is not new or rows.padded else new.to(output.dtype)
        self._finite.watch(after)
        return (meant & rows.valid & _differ(after, old)).any(1)


def _differ(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(B, R): which rows of (B, H, R, D) are not bitwise the same."""
    return (one != other).any(3).any(1)
