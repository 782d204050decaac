"""selective: attenuate only the tokens that feed the located rows."""

from __future__ import annotations

import attrs
import torch

from uvr_core.protocols import CallInfo, FlowEdit, KeyWeights, Located, MaskOptions, Reweight, RowClass, row_classes

from ..settings import share


@attrs.frozen
class Selective:
    """Attenuate, for located rows, only the tokens that feed them more than they feed the rest of the image.

    A token's flow contrast is the attention mass it receives from located rows over what it receives from the other
    output rows. Text tokens above `contrast` and reference tokens above `source_contrast` are scaled by `strong`; the
    rest still flows, so the patches are repainted as background rather than left without guidance.

    In editing, located patches are also kept from one another: left with little else to go by, they would amplify
    whatever forms in them first. Where the instruction brings the concept (`Located.from_source` false), the source
    flows on and the ring stays stock, so that the patches show what the source shows there.

    Attributes:
        strong: factor on the chosen tokens, 0..1.
        contrast: text tokens with a larger flow contrast are chosen.
        instruction_contrast: the same where an instruction brings the concept: its words feed the picture more evenly
            than a caption's (measured on the zoo, docs/design/measurements.md).
        source_contrast: reference tokens with a larger flow contrast are chosen.
        amplification: factor on the other located patches when there are reference tokens, 0..1. Above 0, so that a
            row that sees nothing else sees its own kind.
        least_elsewhere: when less than this share of the patches is left to compare with (the concept fills the
            picture), every text and reference token is chosen.
        until: noise level below which nothing is done.
    """

    strong: float = attrs.field(default=0.0, validator=share)
    contrast: float = attrs.field(default=2.5, validator=attrs.validators.gt(0.0))
    instruction_contrast: float = attrs.field(default=0.5, validator=attrs.validators.gt(0.0))
    source_contrast: float = attrs.field(default=2.5, validator=attrs.validators.gt(0.0))
    amplification: float = attrs.field(
        default=0.01, validator=attrs.validators.and_(attrs.validators.gt(0.0), attrs.validators.le(1.0))
    )
    least_elsewhere: float = attrs.field(default=0.05, validator=share)
    until: float = attrs.field(default=0.0, validator=share)
    ring: int = 1
    margin: int = 0
    name: str = "selective"

    @property
    def masks(self) -> MaskOptions:
        return MaskOptions(self.ring, self.margin)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if located.sigma < self.until:
            return None
        elsewhere = (~(located.core | located.ring)).float().mean(-1)  # share of patches left to compare with
        alone = (elsewhere < self.least_elsewhere)[:, None]

        def factor(contrast: torch.Tensor, bar: float) -> torch.Tensor:
            weakened = (contrast > bar) | alone
            return weakened.float() * self.strong + (~weakened).float()

        rows, words = row_classes(located), call.text_contrast()
        if not call.reference:
            return FlowEdit(rows, Reweight(text_factor=factor(words, self.contrast)))
        shown = located.from_source
        if shown is None:
            shown = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        shown = shown[:, None]
        source = factor(call.reference_contrast(), self.source_contrast).masked_fill(~shown, 1.0)
        text = torch.where(shown, factor(words, self.contrast), factor(words, self.instruction_contrast))
        apart = KeyWeights(located=self.amplification)
        rows = rows.masked_fill((rows == RowClass.RING) & ~shown, RowClass.STOCK)
        return FlowEdit(rows, Reweight(apart, apart, text_factor=text, reference_factor=source))
