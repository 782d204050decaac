"""The rows of an edit, listed: what follows from masks alone, made once and shared by all calls until masks change."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import attrs
import numpy as np
import numpy.typing as npt
import torch

from ..intercept.calls import JointCall
from ..ops.rows import Rows, rows_on
from ..ops.upload import upload
from ..protocols import RowClass

T = TypeVar("T")
Classes = npt.NDArray[np.int64]
_MOST = 64  # lists kept of policies that give other rows in every call


@attrs.frozen(eq=False, slots=False)
class Listed:
    """The query rows that one edit rewrites; B images, N output patches, R rows at most.

    Attributes:
        rows: the rows.
        classes: (B, N) RowClass on the host: what is rewritten; STOCK also where an earlier concept's edit stands.
        edited: (B, N) RowClass on the host, as the policy said.
        claimed: (B, N) bool on the host, where an earlier concept's edit stands.
        device: of the call.
        kept: what `once` keeps.
    """

    rows: Rows
    classes: Classes
    edited: Classes
    claimed: npt.NDArray[np.bool_]
    device: torch.device
    kept: dict[Hashable, Any] = attrs.field(factory=dict, init=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What follows from the rows alone, made when first asked for."""
        if key not in self.kept:
            self.kept[key] = make()
        value: T = self.kept[key]
        return value

    @functools.cached_property
    def host_kinds(self) -> Classes:
        """(B, R) RowClass of each slot, on the host; STOCK where it is padding."""
        kinds = np.zeros(tuple(self.rows.index.shape), np.int64)
        for sample, line in enumerate(self.classes):
            listed = line[line != RowClass.STOCK]
            kinds[sample, : len(listed)] = listed
        return kinds

    @functools.cached_property
    def kinds(self) -> torch.Tensor:
        """`host_kinds`, on the device."""
        return upload(self.host_kinds, self.device)

    @functools.cached_property
    def patches(self) -> torch.Tensor:
        """(B, R) int64, the output patch of each slot; 0 where it is padding."""
        patches = np.zeros_like(self.host_kinds)
        patches[self.host_kinds != RowClass.STOCK] = self.classes.nonzero()[1]
        return upload(patches, self.device)

    def by_kind(self, stock: float, core: float, ring: float) -> torch.Tensor:
        """(B, R) float32, a number for each kind of row."""
        values = (stock, core, ring)
        return self.once(values, lambda: upload(np.array(values, np.float32)[self.host_kinds], self.device))

    def of_kind(self, kind: RowClass) -> tuple[Rows, Rows]:
        """The rows of one kind: on the query axis, and among the slots."""

        def some() -> tuple[Rows, Rows]:
            slots = rows_on(self.host_kinds == kind, self.device)
            return Rows(self.rows.index.gather(1, slots.index), slots.valid, slots.counts), slots

        return self.once(("kind", kind), some)


class Lister:
    """Lists rows of edits, and remembers: the same rows, told by the tensor itself, are listed once."""

    def __init__(self) -> None:
        self._classes: dict[Hashable, tuple[torch.Tensor, Classes]] = {}
        self._listed: dict[Hashable, tuple[Sequence[torch.Tensor], Listed]] = {}

    def forget(self) -> None:
        """Masks changed."""
        self._classes.clear()
        self._listed.clear()

    def know(self, rows: torch.Tensor, classes: Classes) -> None:
        """What the host knows of a tensor of rows (B, N)."""
        self._classes[_identity(rows)] = (rows, classes)

    def classes(self, rows: torch.Tensor) -> Classes:
        """(B, N), on the host. One host sync if the tensor was never seen, or if nobody could tell that it changed."""
        known = self._classes.get(_identity(rows))
        if known is None or rows.is_inference():
            if len(self._classes) >= _MOST:
                self.forget()
            self.know(rows, rows.detach().cpu().numpy().copy())  # host sync
        return self._classes[_identity(rows)][1]

    def listed(self, edits: Sequence[torch.Tensor], call: JointCall) -> Listed:
        """The rows of the last of several edits (B, N) each, in order of rank: an earlier one's stay as they are."""
        classes = [self.classes(rows) for rows in edits]
        key = (tuple(map(_identity, edits)), call.queries.tokens)
        if key in self._listed and not any(rows.is_inference() for rows in edits):
            return self._listed[key][1]
        edited = classes[-1]
        claimed = np.zeros(edited.shape, bool)
        for earlier in classes[:-1]:
            claimed |= earlier != RowClass.STOCK
        rewritten = np.where(claimed, RowClass.STOCK, edited)
        full = np.zeros((len(edited), call.queries.tokens), bool)
        full[:, call.queries.output] = rewritten != RowClass.STOCK
        device = call.query.device
        self._listed[key] = tuple(edits), Listed(rows_on(full, device), rewritten, edited, claimed, device)
        return self._listed[key][1]


def _identity(rows: torch.Tensor) -> tuple[int, int]:
    return id(rows), 0 if rows.is_inference() else rows._version
