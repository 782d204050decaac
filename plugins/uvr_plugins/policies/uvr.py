"""uvr: the paper's restriction."""

from __future__ import annotations

import attrs

from uvr_core.protocols import CallInfo, FlowEdit, Located, row_classes

from ..settings import share

_SAME = (1.0, 1.0, 1.0, 1.0)


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

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if located.sigma < self.until:
            return None
        table = (
            _SAME,
            (self.strong, self.boost, 1.0, self.strong),
            (self.mild, self.boost, 1.0, self.mild),
        )
        alpha = (0.0, self.alpha if located.sigma >= self.startup else 0.0, 0.0)
        return FlowEdit(row_classes(located), table, alpha)
