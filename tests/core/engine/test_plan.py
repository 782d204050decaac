"""A concept's plan goes by the name of its bank."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from diffusers import FluxPipeline
from driven import plan_of
from runner import Runner, make_bank

import uvr_core
from uvr_core import ConceptMismatch
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


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 1e308, "0.5", True])
def test_a_threshold_that_no_score_reaches_is_refused_whatever_way_it_came(runner: Runner, wrong: Any) -> None:
    bank = make_bank("weapon")

    refused = pytest.raises(ConceptMismatch, match=r"threshold: expected a finite number, got ")
    for threshold in (wrong, {"weapon": wrong}):
        with refused:
            uvr_core.attach(runner.pipe, concepts=bank, threshold=threshold)
    with refused:
        attrs.evolve(bank.calibration, threshold=wrong)
    if isinstance(wrong, float):
        with refused:
            uvr_core.attach(runner.pipe, concepts=bank, detector=SimpleNamespace(threshold=wrong, scores=print))
    assert type(runner.pipe) is FluxPipeline, "still attached"


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("window", (0.2, 0.8)), ("window", (float("nan"), 0.0)), ("grow", float("nan")), ("min_patches", 0),
     ("memory", 1.5), ("memory", float("nan"))],
)  # fmt: skip
def test_a_plan_that_would_never_locate_anything_is_refused(field: str, wrong: Any) -> None:
    with pytest.raises(ConceptMismatch, match=rf"conceptplan\.{field}: expected "):
        attrs.evolve(plan_of(make_bank(), Oracle(None), Observe()), **{field: wrong})
