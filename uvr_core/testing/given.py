"""A plan that does exactly what it is told: given masks, a given edit, on any model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch

from ..adapter import Adapter
from ..concepts import Calibration, ConceptBank
from ..engine.attach import attach
from ..engine.lookup import find_adapter, fingerprint
from ..engine.regulator import Regulator
from ..protocols import CallInfo, FlowEdit, Located, Policy, row_classes
from .example import Size


@attrs.frozen(eq=False)
class Given:
    """A detector that locates given patches.

    Attributes:
        mask: (B, N) bool.
    """

    mask: torch.Tensor
    name: str = "given"
    threshold: float = 0.0

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        return self.mask.float() * 2 - 1


def everywhere(batch: int, grid: Size) -> Given:
    """Every patch of every sample is located."""
    return Given(torch.ones(batch, grid[0] * grid[1], dtype=torch.bool))


@attrs.frozen
class Edit:
    """A policy with a given edit of core rows.

    Attributes:
        alpha: share of noise per row class.
        tokens: give every text and reference token a factor of 1, so that the rows are computed anew.
        nothing: return None.
        only: the block to edit; None: all.
    """

    alpha: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tokens: bool = False
    nothing: bool = False
    only: str | None = None
    name: str = "edit"
    ring: int = 0
    margin: int = 0

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if self.nothing or self.only not in (None, call.path):
            return None
        rows = row_classes(located)
        if not self.tokens:
            return FlowEdit(rows, alpha=self.alpha)
        text, reference = (torch.ones(len(rows), count, device=rows.device) for count in (call.text, call.reference))
        return FlowEdit(rows, alpha=self.alpha, text_factor=text, reference_factor=reference)


@contextmanager
def regulated(model: Any, adapter: Adapter | None, detector: Given, policy: Policy) -> Iterator[Regulator]:
    """Attach with a concept that `detector` locates at the first block, at every noise level."""
    transformer = getattr(model, "transformer", model)
    taps = find_adapter(transformer, adapter).taps(transformer)
    calibration = Calibration(detector.name, next(iter(taps)), (1.0, 0.0), detector.threshold)
    bank = ConceptBank("conformance", fingerprint(transformer, taps), {}, calibration)
    with attach(model, adapter, concepts=bank, detector=detector, policy=policy) as reg:
        yield reg
