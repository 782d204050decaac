"""refuse: no image in which the concept is located."""

from __future__ import annotations

from typing import Any

import attrs

from uvr_core.errors import UnsafeContent, UVRError
from uvr_core.protocols import CallInfo, FlowEdit, Located, MaskOptions, Policy, PolicyTraits


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

    @property
    def withholds(self) -> bool:
        return self.then is None

    @property
    def needs_uncond(self) -> bool:
        return PolicyTraits.of(self.then).needs_uncond

    @property
    def masks(self) -> MaskOptions:
        return PolicyTraits.of(self.then).masks

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if self.then is not None and self.steps is not None and located.step >= self.steps:
            return self.then.edit(located, call)
        samples = tuple(located.core.any(-1).nonzero().flatten().tolist())
        which = f"image{'s' if len(samples) > 1 else ''} {', '.join(map(str, samples))} of the batch"
        raise UnsafeContent(
            f"concept {located.concept!r} was located in {which} (0 is the first) at step {located.step}; no such "
            "image is returned: change the prompt or the source image",
            concept=located.concept,
            samples=samples,
            step=located.step,
        )
