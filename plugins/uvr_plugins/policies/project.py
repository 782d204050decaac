"""project: the concept's direction taken out."""

from __future__ import annotations

import attrs

from uvr_core.protocols import CallInfo, FlowEdit, Located, MaskOptions, Projection, row_classes


@attrs.frozen
class Project:
    """Take the concept's direction out of located rows (core and ring), in the blocks that the bank knows.

        O' = O - strength * max(0, O . w + b) / |w|^2 * w

    w and b are the bank's whitened direction and offset at this noise level: the score of `contrast`, of which a row
    that scores above 0 keeps the share 1 - strength. Without a direction, w is the mean anchor and b = 0. In practice
    one block, the probe, is changed: a calibrated bank has tensors for no other. In editing, where a direction is 2C
    wide, w is its first half, for the patch; what the second half gives for the reference token facing it stays in the
    score and is not taken out of that token.

    Attributes:
        strength: share of the score that is taken away, >= 0; above 1 it turns negative.
    """

    strength: float = attrs.field(default=1.0, validator=attrs.validators.ge(0.0))
    ring: int = 1
    margin: int = 0
    name: str = "project"

    @property
    def masks(self) -> MaskOptions:
        return MaskOptions(self.ring, self.margin)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        direction = call.direction()
        if direction is None:
            return None
        share = self.strength
        return FlowEdit(row_classes(located), projection=Projection(direction.vector, direction.offset, share, share))
