"""fade: restrict while the layout of the picture forms, let go while its details do."""

from __future__ import annotations

import attrs

from uvr_core import CallInfo, FlowEdit, Located
from uvr_core.protocols import KeyWeights, MaskOptions, Reweight, row_classes

_share = attrs.validators.and_(attrs.validators.ge(0.0), attrs.validators.le(1.0))


@attrs.frozen
class Fade:
    """Attenuate text and reference tokens for located patches by a factor that rises to 1 as the noise falls.

        factor(sigma) = 1 - w(sigma) * (1 - strong)

    with w = 1 at noise levels from `full` up, 0 from `none` down, and a smooth step between. Ring patches get the
    mean of that factor and 1, so that the edge of the restriction is soft in space too. Below `none` the model's own
    outputs draw the details, bitwise stock. Letting go early lets the concept come back: see the README.

    Attributes:
        strong: factor on text and reference tokens at full restriction, 0..1; 0 cuts them off.
        full, none: noise levels, 0 <= none < full <= 1.
        masks: width of the ring around the core, in patches, and what else shapes the masks.
    """

    strong: float = attrs.field(default=0.0, validator=_share)
    full: float = attrs.field(default=0.3, validator=_share)
    none: float = attrs.field(default=0.1, validator=_share)
    masks: MaskOptions = attrs.field(factory=MaskOptions)
    name: str = "fade"

    def __attrs_post_init__(self) -> None:
        if not self.none < self.full:
            raise ValueError(f"Fade: expected none < full, got none={self.none}, full={self.full}")

    def weight(self, sigma: float) -> float:
        """Share of the restriction at a noise level, 0..1, nondecreasing in sigma."""
        x = min(max((sigma - self.none) / (self.full - self.none), 0.0), 1.0)
        return x * x * (3 - 2 * x)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        weight = self.weight(located.sigma)
        if weight == 0:
            return None
        core = 1 - weight * (1 - self.strong)
        ring = (core + 1) / 2
        weights = (KeyWeights(text=factor, reference=factor) for factor in (core, ring))
        return FlowEdit(row_classes(located), Reweight(*weights))
