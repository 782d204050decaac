"""redirect: the unconditional pass's text in place of the prompt's."""

from __future__ import annotations

from typing import ClassVar

import attrs

from uvr_core.protocols import CallInfo, FlowEdit, Located, MaskOptions, Reweight, row_classes


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
    needs_uncond: ClassVar[bool] = True

    @property
    def masks(self) -> MaskOptions:
        return MaskOptions(self.ring, self.margin)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        return FlowEdit(row_classes(located), Reweight(text="uncond"))
