"""block: a hard cut."""

from __future__ import annotations

import attrs

from uvr_core.protocols import CallInfo, FlowEdit, KeyWeights, Located, MaskOptions, Reweight, row_classes


@attrs.frozen
class Block:
    """Hard cut: located rows (core and ring) receive nothing from text and reference tokens."""

    ring: int = 1
    margin: int = 0
    name: str = "block"

    @property
    def masks(self) -> MaskOptions:
        return MaskOptions(self.ring, self.margin)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        cut = KeyWeights(text=0.0, reference=0.0)
        return FlowEdit(row_classes(located), Reweight(cut, cut))
