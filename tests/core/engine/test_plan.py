"""A concept's plan goes by the name of its bank."""

from __future__ import annotations

import attrs
import pytest
from driven import plan_of
from runner import make_bank

from uvr_plugins.detectors import Oracle
from uvr_plugins.policies import Observe, Redirect, Uvr


def test_what_is_asked_of_detector_and_policy_stands_in_the_plan() -> None:
    plan = plan_of(make_bank("weapon"), Oracle(None), Redirect())
    assert plan.name == "weapon"
    assert (plan.exact, plan.acts, plan.needs_uncond) == (True, True, True)
    assert not plan_of(make_bank(), Oracle(None), Observe()).needs_uncond
    assert plan_of(make_bank(), Oracle(None), Uvr(ring=3)).masks.ring == 3


def test_a_plan_does_not_change_during_a_run() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        plan_of(make_bank(), Oracle(None), Observe()).threshold = 1.0  # type: ignore[misc]
