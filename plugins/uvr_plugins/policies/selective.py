"""Built-in policies: pure functions from located patches to a flow edit. See uvr_core.protocols.

All work on rows of located output patches; every other row of every attention output stays bitwise stock.
Table columns: text, safe output, located output, reference.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import attrs
import torch

from uvr_core.errors import UnsafeContent, UVRError
from uvr_core.protocols import RING, STOCK, CallInfo, ColumnScale, FlowEdit, Located, Policy, Projection, row_classes

_SAME = (1.0, 1.0, 1.0, 1.0)
_OPTIONAL = ("ring", "margin", "mass_ratio", "needs_unconditional")
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
class Noise:
    """Core rows become (1 - alpha) O + alpha * noise, in the start-up window only; the ring is never touched.

    The noise term of UVR's restriction (arXiv 2606.06875, online restriction) by itself.

    Attributes:
        alpha: share of noise, 0..1.
        noise: "matched" to the mean and deviation of the rows it replaces, per head, or "unit" N(0, 1).
        startup: noise level below which nothing is done.
    """

    alpha: float = attrs.field(default=0.999, validator=_share)
    noise: Literal["matched", "unit"] = attrs.field(
        default="matched", validator=attrs.validators.in_(("matched", "unit"))
    )
    startup: float = attrs.field(default=0.85, validator=_share)
    ring: int = 0
    name: str = "noise"

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if located.sigma < self.startup:
            return None
        return FlowEdit(row_classes(located), alpha=(0.0, self.alpha, 0.0), noise=self.noise)


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

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        direction = call.direction()
        if direction is None:
            return None
        strength = (0.0, self.strength, self.strength)
        return FlowEdit(row_classes(located), projection=Projection(direction.vector, direction.offset, strength))


@attrs.frozen
class Redirect:
    """Located rows (core and ring) see the unconditional pass's text tokens in place of their own.

    Queries and image keys are the rows' own, so they are painted as the negative prompt would have them and guidance
    has nothing to amplify there. With guidance in one batch the text is that of the same step; with two passes it is
    that of the step before, and in the first step, which has none before it, the text is cut. Without guidance the run
    is refused: at once where one batch holds both halves, else in the second step.
    """

    ring: int = 1
    margin: int = 0
    name: str = "redirect"
    needs_unconditional: ClassVar[bool] = True

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        return FlowEdit(row_classes(located), text="unconditional")


@attrs.frozen
class Refuse:
    """Give no image in which the concept is located.

    The other images of the batch are stock; in the place of a refused one comes `instead`. As soon as every image of
    the batch is refused, the generation stops and the call raises UnsafeContent; on a bare transformer, where nobody
    could keep an image back, as soon as one is.

    Attributes:
        instead: what the pipeline returns in place of a refused image: None, or a picture of your own.
        steps: refuse in the first so many scheduler steps only, >= 1, so that a refused image costs no more than these;
            None = whenever the concept is located.
        then: the policy for images in which the concept is located later; given exactly when `steps` is.
    """

    instead: Any = None
    steps: int | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(attrs.validators.ge(1))
    )
    then: Policy | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(attrs.validators.instance_of(Policy))
    )
    name: str = "refuse"

    def __attrs_post_init__(self) -> None:
        if (self.steps is None) != (self.then is None):
            raise UVRError(
                "refuse: give steps and then together, for instance Refuse(steps=3, then=Selective()): an image in "
                "which the concept is located after these steps must not go unregulated"
            )

    def __getattr__(self, name: str) -> Any:
        """The optional attributes of a policy (`ring`, ...) are those of `then`."""
        if name in _OPTIONAL and self.then is not None:
            return getattr(self.then, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if self.then is not None and self.steps is not None and located.step >= self.steps:
            return self.then.edit(located, call)
        samples = tuple(located.core.any(-1).nonzero().flatten().tolist())
        which = f"image{'s' if len(samples) > 1 else ''} {', '.join(map(str, samples))} of the batch"
        raise UnsafeContent(
            f"concept {located.concept!r} was located in {which} (0 is the first) at step {located.step}; no such "
            "image is returned: change the prompt or the source image",
            concept=located.concept, samples=samples, step=located.step,
        )  # fmt: skip


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

        rows, words = row_classes(located), call.text_contrast()
        if not call.reference:
            return FlowEdit(rows, text_factor=factor(words, self.contrast))
        shown = located.from_source
        if shown is None:
            shown = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        shown = shown[:, None]
        source = factor(call.reference_contrast(), self.source_contrast).masked_fill(~shown, 1.0)
        text = torch.where(shown, factor(words, self.contrast), factor(words, self.instruction_contrast))
        apart = (1.0, 1.0, self.amplification, 1.0)
        rows = rows.masked_fill((rows == RING) & ~shown, STOCK)
        return FlowEdit(rows, (_SAME, apart, apart), text_factor=text, reference_factor=source)


@attrs.frozen
class Observe:
    """Change nothing; the report says what was located."""

    name: str = "observe"

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        return None
