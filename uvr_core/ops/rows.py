"""Rows of the query axis: listed, gathered and written back."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .checks import check_shape, check_tokens, described
from .upload import upload


@attrs.frozen(eq=False, slots=False)
class Rows:
    """Which query rows of each sample are meant, padded to one length; made by :func:`rows_of`, :func:`rows_on`.

    Attributes:
        index: (B, R) int64, positions on the query axis, ascending; padding holds 0, which is safe to gather.
        valid: (B, R) bool, True where ``index`` is a listed row. A sample's valid slots come first.
        counts: number of valid slots of each sample, on the host, so that nobody has to ask the device again.
    """

    index: Tensor
    valid: Tensor
    counts: tuple[int, ...]

    def __attrs_post_init__(self) -> None:
        if self.index.dim() != 2 or self.index.dtype != torch.int64:
            raise ValueError(f"Rows.index: expected (B, R) int64, got {described(self.index)}")
        if self.valid.shape != self.index.shape or self.valid.dtype != torch.bool:
            raise ValueError(f"Rows.valid: expected {tuple(self.index.shape)} bool, got {described(self.valid)}")
        if len(self.counts) != len(self.index) or any(not 0 <= n <= self.width for n in self.counts):
            raise ValueError(f"Rows.counts: expected {len(self.index)} numbers in 0..{self.width}, got {self.counts}")

    @property
    def width(self) -> int:
        """R, the padded length; 0 when no sample lists a row."""
        return self.index.shape[1]

    @property
    def padded(self) -> bool:
        """Whether any slot is padding; known on the host."""
        return any(n < self.width for n in self.counts)

    @functools.cached_property
    def slots(self) -> Tensor:
        """(B, R) int64, where to read what is written at each slot: padding repeats the sample's first slot."""
        return torch.where(self.valid, torch.arange(self.width, device=self.index.device), 0)

    @functools.cached_property
    def targets(self) -> Tensor:
        """(B, R) int64, where each slot is written: padding at the sample's first listed row, 0 if it has none."""
        return self.index.gather(1, self.slots)

    @functools.cached_property
    def empty(self) -> Tensor:
        """(B, 1, 1, 1) bool, samples that list no row."""
        return ~self.valid.any(dim=1)[:, None, None, None]


def rows_of(mask: Tensor, counts: Sequence[int] | None = None) -> Rows:
    """List the True positions of each sample's mask. One host sync, unless the host knows the counts.

    Args:
        mask: (B, Sq) bool, True at the rows meant.
        counts: how many rows each sample means, not checked.

    Returns:
        :class:`Rows` with R = the largest count over the samples, 0 if nothing is listed.

    Raises:
        ValueError: ``mask`` is not (B, Sq) bool.
    """
    if mask.dim() != 2 or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected (B, Sq) bool, got {described(mask)}")
    counts = tuple(int(n) for n in (mask.sum(dim=1).tolist() if counts is None else counts))  # the host sync
    width = max(counts, default=0)
    first = torch.sort(mask.to(torch.uint8), dim=1, descending=True, stable=True).indices[:, :width]
    valid = mask.gather(1, first)  # True first, so the valid slots are a prefix
    return Rows(index=torch.where(valid, first, 0), valid=valid, counts=counts)


def rows_on(mask: npt.NDArray[np.bool_], device: torch.device) -> Rows:
    """As :func:`rows_of`, of a mask (B, Sq) on the host. No host sync."""
    counts = mask.sum(1)
    width = int(counts.max(initial=0))
    valid = np.arange(width) < counts[:, None]
    index = np.zeros(valid.shape, np.int64)
    index[valid] = mask.nonzero()[1]
    return Rows(upload(index, device), upload(valid, device), tuple(counts.tolist()))


def take_rows(x: Tensor, rows: Rows) -> Tensor:
    """Gather rows of the query axis.

    Args:
        x: (B, H, Sq, D), any dtype.
        rows: rows of B samples.

    Returns:
        (B, H, R, D), dtype of ``x``; padding slots hold a copy of row 0.

    Raises:
        ValueError: ``x`` is not 4-dimensional or its batch differs.
    """
    if x.dim() != 4 or x.shape[0] != rows.index.shape[0]:
        raise ValueError(f"x: expected ({rows.index.shape[0]}, H, Sq, D) for these rows, got {described(x)}")
    if len(rows.index) == 1:  # whole rows are copied; gather copies number by number
        if (flat := _side_by_side(x)) is not None:
            return flat.index_select(0, rows.index[0]).view(1, -1, x.shape[1], x.shape[3]).transpose(1, 2)
        return x.index_select(2, rows.index[0])
    return x.gather(2, rows.index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _side_by_side(x: Tensor) -> Tensor | None:
    """(S, H * D), a view of the one sample of x (1, H, S, D) in which a token's heads lie side by side, or None."""
    tokens = x.transpose(1, 2)
    return tokens[0].flatten(1) if tokens.is_contiguous() else None


def write_rows(out: Tensor, new: Tensor, rows: Rows, *, in_place: bool = False) -> Tensor:
    """Replace the listed rows of an attention output.

    No host sync. Padding cannot harm row 0: a padding slot repeats the sample's first valid slot, and in a sample
    without one it writes row 0's own value back.

    Args:
        out: (B, H, Sq, D), the stock output; not modified, unless ``in_place``.
        new: (B, H, R, D), values for the listed rows.
        rows: rows of B samples; no valid row may be listed twice.
        in_place: write into ``out``, which saves a copy of it. Only where nobody else holds it and autograd is
            off.

    Returns:
        (B, H, Sq, D), dtype of ``out``: a new tensor, bitwise ``out`` except at valid rows. If R = 0 or
        ``in_place``, ``out`` itself.

    Raises:
        ValueError: shapes disagree.
    """
    check_tokens("out", out)
    batch, heads, _, size = out.shape
    check_shape("rows.index", rows.index, (batch, rows.width))
    check_shape("new", new, (batch, heads, rows.width, size))
    if rows.width == 0:
        return out
    new = new.to(out.dtype)
    if batch == 1 and not rows.padded:
        if in_place and (flat := _side_by_side(out)) is not None:
            flat.index_copy_(0, rows.index[0], new.transpose(1, 2).reshape(rows.width, -1))
            return out
        return (out.index_copy_ if in_place else out.index_copy)(2, rows.index[0], new)
    write = out.scatter_ if in_place else out.scatter
    if not rows.padded:
        return write(2, rows.index[:, None, :, None].expand(-1, heads, -1, size), new)
    # Padding slots become copies of the sample's first valid slot: several equal writes to one place are
    # harmless. A sample without any writes back what is there.
    index = rows.targets[:, None, :, None].expand(-1, heads, -1, size)  # (B, H, R, D)
    value = new.gather(2, rows.slots[:, None, :, None].expand(-1, heads, -1, size))
    if 0 in rows.counts:
        value = torch.where(rows.empty, out.gather(2, index), value)
    return write(2, index, value)
