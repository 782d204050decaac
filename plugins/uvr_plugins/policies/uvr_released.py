"""uvr-released: the operators of the released code."""

from __future__ import annotations

import attrs

from uvr_core.protocols import (
    CallInfo,
    ColumnScale,
    ColumnWeights,
    FlowEdit,
    Located,
    MaskOptions,
    NoiseBlend,
    row_classes,
)

from ..settings import share


@attrs.frozen
class UvrReleased:
    """What the released script does, while sigma >= 0.85.

    Synthesis: core rows become 0.001 O + 0.999 N(0, 1). Editing (reference tokens are there): after the softmax, and
    not renormalised, queries of text and output see the reference tokens that face the core scaled by 0.2 and those
    that face the ring by 0.4, and output queries see text and output tokens scaled by 1.05.

    The facts are from the released code; none of it is copied, and its faults (anchors never loaded, one global
    mask, batch averaged, benign images changed) are not reproduced.

    Attributes:
        keep: share of the output that core rows keep in synthesis.
        strong, mild: factors on reference tokens facing core and ring in editing.
        boost: factor on text and output tokens in editing.
        startup: noise level below which nothing is done.
    """

    keep: float = attrs.field(default=0.001, validator=share)
    strong: float = attrs.field(default=0.2, validator=share)
    mild: float = attrs.field(default=0.4, validator=share)
    boost: float = attrs.field(default=1.05, validator=attrs.validators.ge(1.0))
    startup: float = attrs.field(default=0.85, validator=share)
    ring: int = 1
    mass_ratio: float = 0.3
    name: str = "uvr-released"

    @property
    def masks(self) -> MaskOptions:
        return MaskOptions(self.ring, mass_ratio=self.mass_ratio)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if located.sigma < self.startup:
            return None
        if not call.reference:
            return FlowEdit(row_classes(located), noise=NoiseBlend(core=1 - self.keep, kind="unit"))
        source = {"facing_core": self.strong, "facing_ring": self.mild}
        output = ColumnWeights(text=self.boost, output=self.boost, **source)
        return FlowEdit(row_classes(located), columns=ColumnScale(text=ColumnWeights(**source), output=output))
