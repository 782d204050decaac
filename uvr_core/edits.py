"""What the engine asks of a policy's edit before it applies it. No device sync: values of tensors are not looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite
from numbers import Real

import torch

from .errors import UVRError
from .protocols import FlowEdit


def check(edit: object, policy: str, *, batch: int, patches: int, text: int, reference: int, width: int) -> None:
    """Refuse an edit that cannot be carried out as it says.

    Args:
        edit: what the policy returned.
        policy: its name, for the message.
        batch, patches, text, reference: B, N and the numbers of text and of reference tokens of the call.
        width: C, heads * head_dim.

    Raises:
        UVRError: no FlowEdit, or the first field that is not as FlowEdit's docstring says: tables of the wrong shape or
            with NaN, infinite or negative factors, shares of noise outside 0..1, tensors of the wrong shape or dtype.
    """
    if not isinstance(edit, FlowEdit):
        raise UVRError(f"policy {policy!r} returned {type(edit).__name__}; expected a FlowEdit or None")
    for field, expected, got in _faults(edit, (batch, patches), text, reference, width):
        raise UVRError(f"policy {policy!r}: FlowEdit.{field}: expected {expected}, got {got}")


def _faults(
    edit: FlowEdit, grid: tuple[int, int], text: int, reference: int, width: int
) -> Iterator[tuple[str, str, str]]:
    """(field, expected, got) of everything that is wrong."""
    tensors: list[tuple[str, object, tuple[int, ...]]] = [
        ("row_class", edit.row_class, grid), ("text_factor", edit.text_factor, (grid[0], text)),
        ("reference_factor", edit.reference_factor, (grid[0], reference)),
    ]  # fmt: skip
    tables: list[tuple[str, object, int]] = [("table", edit.table, 4)]
    if edit.columns is not None:
        tables.append(("columns.table", edit.columns.table, 5))
    shares: list[tuple[str, object, float]] = [("alpha", edit.alpha, 1.0)]
    if edit.projection is not None:
        tensors += [
            ("projection.vector", edit.projection.vector, (width,)), ("projection.offset", edit.projection.offset, grid)
        ]  # fmt: skip
        shares.append(("projection.strength", edit.projection.strength, float("inf")))
    for field, tensor, shape in tensors:
        if tensor is None and field in ("text_factor", "reference_factor"):
            continue
        if not isinstance(tensor, torch.Tensor):
            yield field, f"a tensor {shape}", repr(tensor)
        elif field == "row_class" and (tuple(tensor.shape) != shape or tensor.dtype != torch.long):
            yield field, f"{shape} torch.int64", f"{tuple(tensor.shape)} {tensor.dtype}"
        elif field != "row_class" and (tuple(tensor.shape) != shape or not tensor.is_floating_point()):
            yield field, f"{shape} floating point", f"{tuple(tensor.shape)} {tensor.dtype}"
    for field, table, columns in tables:
        if not isinstance(table, Sequence) or len(table) != 3 or not all(_factors(line, columns) for line in table):
            yield field, f"3 x {columns} finite factors >= 0", repr(table)
    for field, values, most in shares:
        if not _factors(values, 3, most):
            yield field, f"3 numbers from 0 to {most:g}" if isfinite(most) else "3 finite numbers >= 0", repr(values)
    for field, word, known in (
        ("noise", edit.noise, ("matched", "unit")), ("text", edit.text, ("own", "unconditional")),
    ):  # fmt: skip
        if word not in known:
            yield field, f"one of {known}", repr(word)


def _factors(values: object, count: int, most: float = float("inf")) -> bool:
    """Whether these are so many finite numbers from 0 to `most`."""
    return (
        isinstance(values, Sequence)
        and len(values) == count
        and all(isinstance(x, Real) and isfinite(x) and 0.0 <= float(x) <= most for x in values)
    )
