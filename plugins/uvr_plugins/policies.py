"""Built-in policies: pure functions from located patches to a flow edit. See uvr_core.protocols.

All work on rows of located output patches; every other row of every attention output stays bitwise stock.
Table columns: text, safe output, located output, reference.
"""

from __future__ import annotations

import attrs

from uvr_core.protocols import CallInfo, FlowEdit, Located, row_classes

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
    """What the released script does for synthesis: while sigma >= 0.85, core rows become 0.001 O + 0.999 N(0, 1).

    The facts are from the released code; none of it is copied, and its faults (anchors never loaded, one global
    mask, batch averaged, benign images changed) are not reproduced.
    """

    keep: float = attrs.field(default=0.001, validator=_share)
    startup: float = attrs.field(default=0.85, validator=_share)
    ring: int = 0
    mass_ratio: float = 0.3
    name: str = "uvr-released"

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if located.sigma < self.startup:
            return None
        return FlowEdit(row_classes(located), alpha=(0.0, 1 - self.keep, 0.0), noise="unit")


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
    """Attenuate, for located rows, only the text tokens that feed them more than they feed the rest of the image.

    A text token's flow contrast is the attention mass it receives from located rows over what it receives from
    the other output rows. Tokens above `contrast` are scaled by `strong`; the rest of the prompt still flows, so
    the patches are repainted as background rather than left without guidance.

    Attributes:
        strong: factor on the chosen text tokens and on reference tokens, 0..1.
        contrast: tokens with a larger flow contrast are chosen.
        least_elsewhere: when less than this share of the patches is left to compare with (the concept fills the
            picture), every text token is chosen.
        until: noise level below which nothing is done.
    """

    strong: float = attrs.field(default=0.0, validator=_share)
    contrast: float = attrs.field(default=2.5, validator=attrs.validators.gt(0.0))
    least_elsewhere: float = attrs.field(default=0.05, validator=_share)
    until: float = attrs.field(default=0.0, validator=_share)
    ring: int = 1
    margin: int = 0
    name: str = "selective"

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if located.sigma < self.until:
            return None
        chosen = call.text_contrast() > self.contrast
        elsewhere = (~(located.core | located.ring)).float().mean(-1)  # share of patches left to compare with
        chosen |= (elsewhere < self.least_elsewhere)[:, None]
        factor = chosen.float() * self.strong + (~chosen).float()
        line = (1.0, 1.0, 1.0, self.strong)
        return FlowEdit(row_classes(located), (_SAME, line, line), text_factor=factor)


@attrs.frozen
class Observe:
    """Change nothing; the report says what was located."""

    name: str = "observe"

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        return None
