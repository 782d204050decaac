"""Whether a concept still stands: scores over late steps, of the output behind the edits."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import torch
from driven import joint, plan_of
from rig import TextOnly

import uvr_core
from uvr_core import Calibration, UVRError
from uvr_core.adapter import Layout
from uvr_core.concepts import Fingerprint
from uvr_core.engine.verify import Verified, verified
from uvr_core.intercept.calls import AttentionCall

LAYOUT = Layout((2, 2))


class Given:
    """The scores of the next look."""

    name, threshold = "given-scores", 0.0

    def __init__(self, *scores: Any):
        self.next = iter(scores)

    def scores(self, features: torch.Tensor, sigma: float, bank: uvr_core.ConceptBank, probe: str) -> Any:
        return next(self.next)


def state(*scores: Any, threshold: float = 1.0, min_patches: int = 2, window: Any = (0.5, 0.0)) -> Verified:
    bank = uvr_core.ConceptBank("x", Fingerprint("Driven", 1, 1, 4), {})
    how = Calibration("given-scores", "a", window, threshold, None, min_patches)
    return Verified(plan_of(bank, Given(), TextOnly(), verification=how, verifier=Given(*scores)))


def call(sigma: float = 0.3) -> Any:
    query = torch.zeros(2, 1, 6, 4)
    return joint(AttentionCall("a", query, query, query, query, None, None), LAYOUT, sigma=sigma)


def look(verified: Verified) -> None:
    verified.look(call(), torch.zeros(2, 4, 4))


def test_the_largest_step_counts_by_its_patches() -> None:
    first = torch.tensor([[5.0, 0.5, 0.0, 0.0], [0.9, 0.8, 0.0, 0.0]])
    second = torch.tensor([[0.0, 5.0, 0.0, 0.0], [1.2, 1.1, 0.0, 0.0]])
    one = state(first, second)
    look(one)
    look(one)
    assert one.scores() == pytest.approx([0.5, 1.1])  # two patches of one step, not one in each of two
    assert one.standing() == (1,)
    assert one.patches((2, 2)).tolist() == [[[True, True], [False, False]], [[True, True], [False, False]]]


@pytest.mark.parametrize(("sigma", "due"), [(0.5, True), (0.2, True), (0.6, False)])
def test_it_is_due_late(sigma: float, due: bool) -> None:
    assert state().due("a", sigma) is due
    assert state().due("b", sigma) is False


def test_nobody_vouches_for_what_was_never_looked_at() -> None:
    with pytest.raises(UVRError, match=r"never verified.*0\.5 to 0.*verify=False"):
        state().standing()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nobody_vouches_for_a_broken_run(bad: float) -> None:
    one = state(torch.full((2, 4), bad))
    look(one)
    with pytest.raises(UVRError, match="NaN or Inf in the verification"):
        one.standing()


def test_wrong_scores_are_refused() -> None:
    with pytest.raises(UVRError, match=r"returned scores of shape \(2, 3\), expected a tensor \(2, 4\)"):
        look(state(torch.zeros(2, 3)))
    with pytest.raises(UVRError, match="verified on 5 patches"):
        look(state(torch.zeros(2, 4), min_patches=5))


def test_concepts_without_a_verification_have_none() -> None:
    plan = state().plan
    assert verified([attrs.evolve(plan, verification=None, verifier=None)]) == ()
    assert [each.plan for each in verified([plan])] == [plan]
