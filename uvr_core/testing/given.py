"""A plan that does exactly what it is told: given masks, a given edit, on any model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import attrs
import torch

from ..adapter import Adapter
from ..concepts import Calibration, ConceptBank
from ..engine.attach import attach
from ..engine.lookup import find_adapter, fingerprint
from ..engine.regulator import Regulator
from ..protocols import CallInfo, FlowEdit, KeyWeights, Located, MaskOptions, NoiseBlend, Policy, Reweight, row_classes
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
        noise: share of noise.
        tokens: give every text and reference token a factor of 1, so that the rows are computed anew.
        cut: rows see no text and no reference token.
        nothing: return None.
        only: the block to edit; None: all.
    """

    noise: float = 0.0
    tokens: bool = False
    cut: bool = False
    nothing: bool = False
    only: str | None = None
    name: str = "edit"
    masks: ClassVar[MaskOptions] = MaskOptions(ring=0)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if self.nothing or self.only not in (None, call.path):
            return None
        rows, reweight = row_classes(located), None
        if self.tokens:
            text, reference = (
                torch.ones(len(rows), tokens, device=rows.device) for tokens in (call.text, call.reference)
            )
            reweight = Reweight(text_factor=text, reference_factor=reference)
        if self.cut:
            reweight = Reweight(KeyWeights(text=0.0, reference=0.0))
        return FlowEdit(rows, reweight, noise=NoiseBlend(core=self.noise))


@contextmanager
def regulated(model: Any, adapter: Adapter | None, detector: Given, policy: Policy) -> Iterator[Regulator]:
    """Attach with a concept that `detector` locates at the first block, at every noise level; a model that is no
    pipeline, for one generation."""
    transformer = getattr(model, "transformer", model)
    taps = find_adapter(transformer, adapter).taps(transformer)
    calibration = Calibration(detector.name, next(iter(taps)), (1.0, 0.0), detector.threshold)
    bank = ConceptBank("conformance", fingerprint(transformer, taps), {}, calibration)
    with attach(model, adapter, concepts=bank, detector=detector, policy=policy) as reg:
        with reg.generation() if model is transformer else nullcontext():
            yield reg
