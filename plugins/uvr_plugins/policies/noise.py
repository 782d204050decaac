"""noise: noise in place of core rows."""

from __future__ import annotations

from typing import Literal

import attrs

from uvr_core.protocols import CallInfo, FlowEdit, Located, MaskOptions, NoiseBlend, row_classes

from ..settings import share


@attrs.frozen
class Noise:
    """Core rows become (1 - alpha) O + alpha * noise, in the start-up window only; the ring is never touched.

    The noise term of UVR's restriction (arXiv 2606.06875, online restriction) by itself.

    Attributes:
        alpha: share of noise, 0..1.
        noise: "matched" to the mean and deviation of the rows it replaces, per head, or "unit" N(0, 1).
        startup: noise level below which nothing is done.
    """

    alpha: float = attrs.field(default=0.999, validator=share)
    noise: Literal["matched", "unit"] = attrs.field(
        default="matched", validator=attrs.validators.in_(("matched", "unit"))
    )
    startup: float = attrs.field(default=0.85, validator=share)
    ring: int = 0
    name: str = "noise"

    @property
    def masks(self) -> MaskOptions:
        return MaskOptions(self.ring)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if located.sigma < self.startup:
            return None
        return FlowEdit(row_classes(located), noise=NoiseBlend(core=self.alpha, kind=self.noise))
