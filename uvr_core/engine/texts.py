"""When the prompts of a run are read: in the first call of each block by which a concept tells them, once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..intercept.calls import JointCall
from .finite import Finite
from .locate import ConceptState
from .plan import ConceptPlan


class Texts:
    """Reads the text of one run.

    Attributes:
        awaited: the taps at which text is still to be read.
    """

    def __init__(self, plan: Sequence[ConceptPlan]):
        self.awaited = frozenset(concept.text.probe for concept in plan if concept.text is not None)

    @torch.no_grad()  # what is only looked at is no part of the graph
    def read(self, call: JointCall, states: Sequence[ConceptState], finite: Finite) -> bool:
        """Read it, if the call is awaited; whether it locates anything. `finite` watches the scores: of NaN no token
        would carry anything. One host sync for each concept of which the text may locate anything."""
        if call.tap not in self.awaited:
            return False
        located = False
        for state in states:
            if state.plan.text is not None and state.plan.text.probe == call.tap:
                finite.watch(state.read_text(call))
                located |= state.take_asked(call)
        self.awaited -= {call.tap}
        return located
