"""A policy, asked for its edit of one call: what it may look at, and whether what it gives is an edit of that call."""

from __future__ import annotations

import functools

import torch

from ..errors import UVRError
from ..intercept.calls import JointCall
from ..protocols import CallInfo, FlowEdit, Located, row_classes
from ..tokens import Role
from .locate import ConceptState
from .readings import Directions, contrast, direction


def shown(located: Located, state: ConceptState, directions: Directions) -> list[torch.Tensor]:
    """The tensors that a policy can reach."""
    masks = (located.core, located.ring, located.from_source, row_classes(located))
    vectors = [vector for vector, _ in directions.values()]
    return [*(mask for mask in masks if mask is not None), *vectors, *state.plan.bank.tensors.values()]


def asked(state: ConceptState, located: Located, call: JointCall, directions: Directions) -> FlowEdit | None:
    """The policy's edit of a call, or None.

    Raises:
        UVRError: what it gives is no edit of this call; names the policy.
    """
    info, plan = _info(call, state, directions), state.plan
    try:
        edit: object = plan.policy.edit(located, info)
        if edit is None:
            return None
        if not isinstance(edit, FlowEdit):
            raise UVRError(f"returned {type(edit).__name__}; expected a FlowEdit or None")
        batch, heads, _, size = call.output.shape
        edit.check_shapes(
            batch=batch, patches=call.layout.output, text=info.text, reference=info.reference, width=heads * size
        )
    except UVRError as error:
        if type(error) is not UVRError:  # a refusal, or a bank that does not fit
            raise
        raise UVRError(f"policy {plan.policy_name!r}: {error}") from error
    return edit


def _info(call: JointCall, state: ConceptState, directions: Directions) -> CallInfo:
    """What a policy may ask of the call; contrasts are computed when asked for, once."""
    assert state.compared is not None
    of_keys = functools.cache(functools.partial(contrast, call, state.compared))
    return CallInfo(
        call.tap,
        call.keys.count(Role.TEXT),
        call.keys.count(Role.REFERENCE),
        lambda: of_keys()[0],
        lambda: of_keys()[1],
        functools.partial(direction, call, state.plan.bank, directions),
        functools.partial(_carriers, call, state),
    )


def _carriers(call: JointCall, state: ConceptState, slack: float = 0.0) -> torch.Tensor | None:
    """The state's, for the text tokens of this call.

    Raises:
        UVRError: it has other text than the call in which they were told.
    """
    told, count = state.carriers(slack), call.keys.count(Role.TEXT)
    if told is not None and told.shape[1] != count:
        assert state.plan.text is not None
        raise UVRError(
            f"concept {state.plan.name!r}: {call.tap} has {count} text tokens and {state.plan.text.probe}, by which it "
            f"is told which of them carry the concept, {told.shape[1]}"
        )
    return told
