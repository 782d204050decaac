"""Built-in policies: pure functions from located patches to a flow edit. See uvr_core.protocols.

All work on rows of located output patches; every other row of every attention output stays bitwise stock.
Table columns: text, safe output, located output, reference.
"""

from __future__ import annotations

import attrs
import torch

from uvr_core.protocols import RING, STOCK, CallInfo, ColumnScale, FlowEdit, Located, row_classes

_SAME = (1.0, 1.0, 1.0, 1.0)
_share = attrs.validators.and_(attrs.validators.ge(0.0), attrs.validators.le(1.0))


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

    strong: float = attrs.field(default=0.0, validator=_share)
    mild: float = attrs.field(default=0.4, validator=_share)
    boost: float = attrs.field(default=1.05, validator=attrs.validators.ge(1.0))
    alpha: float = attrs.field(default=0.0, validator=_share)
    startup: float = attrs.field(default=0.85, validator=_share)
    until: float = attrs.field(default=0.0, validator=_share)
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

    keep: float = attrs.field(default=0.001, validator=_share)
    strong: float = attrs.field(default=0.2, validator=_share)
    mild: float = attrs.field(default=0.4, validator=_share)
    boost: float = attrs.field(default=1.05, validator=attrs.validators.ge(1.0))
    startup: float = attrs.field(default=0.85, validator=_share)
    ring: int = 1
    mass_ratio: float = 0.3
    name: str = "uvr-released"

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if located.sigma < self.startup:
            return None
        if not call.reference:
            return FlowEdit(row_classes(located), alpha=(0.0, 1 - self.keep, 0.0), noise="unit")
        text = (1.0, 1.0, 1.0, self.strong, self.mild)
        output = (self.boost, self.boost, 1.0, self.strong, self.mild)
        columns = ColumnScale((text, output, (1.0,) * 5))
        return FlowEdit(row_classes(located), columns=columns)


@attrs.frozen
class Block:
    """Hard cut: located rows (core and ring) receive nothing from text and reference tokens."""

    ring: int = 1
    margin: int = 0
    name: str = "block"

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        cut = (0.0, 1.0, 1.0, 0.0)
        return FlowEdit(row_classes(located), (_SAME, cut, cut))


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
        instruction_contrast: the same when there are reference tokens: an instruction's words feed the picture more
            evenly than a caption's (measured on the zoo, docs/design/measurements.md).
        source_contrast: reference tokens with a larger flow contrast are chosen.
        amplification: factor on the other located patches when there are reference tokens, 0..1. Above 0, so that a
            row that sees nothing else sees its own kind.
        least_elsewhere: when less than this share of the patches is left to compare with (the concept fills the
            picture), every text and reference token is chosen.
        until: noise level below which nothing is done.
    """

    strong: float = attrs.field(default=0.0, validator=_share)
    contrast: float = attrs.field(default=2.5, validator=attrs.validators.gt(0.0))
    instruction_contrast: float = attrs.field(default=0.5, validator=attrs.validators.gt(0.0))
    source_contrast: float = attrs.field(default=2.5, validator=attrs.validators.gt(0.0))
    amplification: float = attrs.field(
        default=0.01, validator=attrs.validators.and_(attrs.validators.gt(0.0), attrs.validators.le(1.0))
    )
    least_elsewhere: float = attrs.field(default=0.05, validator=_share)
    until: float = attrs.field(default=0.0, validator=_share)
    ring: int = 1
    margin: int = 0
    name: str = "selective"

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if located.sigma < self.until:
            return None
        elsewhere = (~(located.core | located.ring)).float().mean(-1)  # share of patches left to compare with
        alone = (elsewhere < self.least_elsewhere)[:, None]

        def factor(contrast: torch.Tensor, bar: float) -> torch.Tensor:
            chosen = (contrast > bar) | alone
            return chosen.float() * self.strong + (~chosen).float()

        text = factor(call.text_contrast(), self.instruction_contrast if call.reference else self.contrast)
        if not call.reference:
            return FlowEdit(row_classes(located), text_factor=text)
        apart = (1.0, 1.0, self.amplification, 1.0)
        rows, source = row_classes(located), None
        shown = located.from_source
        if shown is None:
            shown = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        rows = rows.masked_fill((rows == RING) & ~shown[:, None], STOCK)
        if shown.any():
            source = factor(call.reference_contrast(), self.source_contrast).masked_fill(~shown[:, None], 1.0)
        return FlowEdit(rows, (_SAME, apart, apart), text_factor=text, reference_factor=source)


@attrs.frozen
class Observe:
    """Change nothing; the report says what was located."""

    name: str = "observe"

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        return None
