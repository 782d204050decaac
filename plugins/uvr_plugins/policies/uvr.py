"""uvr: the paper's restriction."""

from __future__ import annotations

import attrs

from uvr_core.protocols import CallInfo, FlowEdit, KeyWeights, Located, MaskOptions, NoiseBlend, Reweight, row_classes

from ..settings import share


@attrs.frozen
class Uvr:
    """The paper's restriction (UVR, arXiv 2606.06875, online restriction).

    Attributes:
        strong, mild: factors on what is not output (text, reference), for core and ring rows, 0 <= strong <= mild <= 1.
        boost: factor >= 1 on safe output, for core and ring rows.
        alpha: share of noise on core rows, in the start-up window only.
        startup: noise level above which noise is mixed in.
        until: noise level below which nothing is done.
        ring, margin: patches by which the mask is ringed (mild) and widened (strong).
        mass_ratio: share of the score mass that the kept components cover.
    """

    strong: float = attrs.field(default=0.0, validator=share)
    mild: float = attrs.field(default=0.4, validator=share)
    boost: float = attrs.field(default=1.05, validator=attrs.validators.ge(1.0))
    alpha: float = attrs.field(default=0.0, validator=share)
    startup: float = attrs.field(default=0.85, validator=share)
    until: float = attrs.field(default=0.0, validator=share)
    ring: int = 1
    margin: int = 0
    mass_ratio: float = 1.0
    name: str = "uvr"

    @property
    def masks(self) -> MaskOptions:
        return MaskOptions(self.ring, self.margin, self.mass_ratio)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if located.sigma < self.until:
            return None
        core, ring = (KeyWeights(text=weak, safe=self.boost, reference=weak) for weak in (self.strong, self.mild))
        noise = NoiseBlend(core=self.alpha) if located.sigma >= self.startup else None
        return FlowEdit(row_classes(located), Reweight(core, ring), noise=noise)
