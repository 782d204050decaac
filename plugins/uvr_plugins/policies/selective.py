"""selective: attenuate only the tokens that feed the located rows."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch

from uvr_core.protocols import CallInfo, FlowEdit, KeyWeights, Located, MaskOptions, Reweight, RowClass, row_classes

from ..settings import share


@attrs.frozen
class Selective:
    """Attenuate, for located rows, only the tokens that feed them more than they feed the rest of the image.

    Where the concept says which of the prompt's tokens carry it (`calibrate_text`), these are the text tokens that are
    chosen, from the first step on. Else, and among reference tokens, they are told by their flow: a token's flow
    contrast is the attention mass it receives from located rows over what it receives from the other output rows, and
    text tokens above `contrast` and reference tokens above `source_contrast` are chosen. They are scaled by `strong`;
    the rest still flows, so the patches are repainted as background rather than left without guidance.

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
        everywhere: without sources, the chosen tokens are withheld from every patch of an image in which something is
            located: a concept whose place no caption says forms again elsewhere. None: where the concept says which
            tokens carry it, and else not, since what the flow chooses at the start other things need too.
        kept: a block's contrasts are read once for the same masks, and not in every step: on large grids their reading
            is two thirds of the arithmetic (docs/design/measurements.md).
        slack: text tokens that carry the concept with log odds up to so much below its bar are chosen too.
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
    everywhere: bool | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(bool))
    )
    kept: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    slack: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    until: float = attrs.field(default=0.0, validator=share)
    ring: int = 1
    margin: int = 0
    name: str = "selective"

    @property
    def by_text(self) -> bool:
        """Not where it is told to keep to the located patches."""
        return self.everywhere is not False

    @property
    def masks(self) -> MaskOptions:
        return MaskOptions(self.ring, self.margin)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if located.sigma < self.until:
            return None
        rows, for_words, for_source = located.once(self, lambda: self._bars(located))

        def factor(tokens: str, read: Callable[[], torch.Tensor], bar: torch.Tensor) -> torch.Tensor:
            contrast = located.once((self, call.path, tokens), read) if self.kept else read()
            return torch.ones_like(contrast).masked_fill_(contrast > bar, self.strong)

        carriers = call.carriers(self.slack)
        if carriers is None:
            words = factor("text", call.text_contrast, for_words)
        else:
            words = torch.ones_like(carriers, dtype=torch.float32).masked_fill_(carriers, self.strong)
        if not call.reference:
            everywhere = carriers is not None if self.everywhere is None else self.everywhere
            classes = located.once((self, everywhere), lambda: _rows(located, everywhere))
            return FlowEdit(classes, Reweight(text_factor=words))
        apart, source = KeyWeights(located=self.amplification), factor("reference", call.reference_contrast, for_source)
        return FlowEdit(rows, Reweight(apart, apart, text_factor=words, reference_factor=source))

    def _bars(self, located: Located) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What follows from the masks: rows (B, N), and (B, 1) each, the contrast above which a token is chosen."""
        elsewhere = (~(located.core | located.ring)).float().mean(-1)
        alone = (elsewhere < self.least_elsewhere)[:, None]  # too few patches are left to compare with
        shown = torch.ones_like(alone) if located.from_source is None else located.from_source[:, None]
        rows = row_classes(located)
        rows = rows.masked_fill((rows == RowClass.RING) & ~shown, RowClass.STOCK)
        caption, instruction, source, never, always = (
            torch.full(alone.shape, bar, device=alone.device)
            for bar in (self.contrast, self.instruction_contrast, self.source_contrast, torch.inf, -1.0)
        )
        words = torch.where(alone, always, torch.where(shown, caption, instruction))
        return rows, words, torch.where(shown, torch.where(alone, always, source), never)


def _rows(located: Located, everywhere: bool) -> torch.Tensor:
    """(B, N) RowClass, without sources."""
    rows = row_classes(located)
    if not everywhere:
        return rows
    others = (rows == RowClass.STOCK) & located.core.any(-1, keepdim=True)
    return rows.masked_fill(others, RowClass.RING)
