"""check_detector: what breaks the contract is caught by the check that should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance import failed

from uvr_core.testing import Status, check_detector
from uvr_core.testing.detector import random_bank

pytestmark = pytest.mark.usefixtures("one_thread")


class Plain:
    """A sound detector that the broken ones change."""

    name = "plain"

    def scores(self, features: torch.Tensor, sigma: float, bank: Any, probe: str) -> torch.Tensor:
        return features @ bank.tensor("anchors", probe).mean(0)


def broken_detector(change: Callable[..., Any]) -> object:
    stock = Plain()

    class Broken(Plain):
        def scores(self, features: torch.Tensor, sigma: float, bank: Any, probe: str) -> Any:
            return change(stock.scores(features, sigma, bank, probe), features, bank, probe)

    return Broken()


def centred(scores: torch.Tensor, features: torch.Tensor, *_: Any) -> torch.Tensor:
    return scores - scores.mean()


def in_place(scores: torch.Tensor, features: torch.Tensor, *_: Any) -> torch.Tensor:
    features.sub_(features.mean())
    return scores


def on_the_bank(scores: torch.Tensor, features: torch.Tensor, bank: Any, probe: str) -> torch.Tensor:
    bank.tensor("anchors", probe).mul_(1.5)
    return scores


DETECTORS = {
    "averaged over the batch": (centred, {"samples-independent"}),
    "features changed in place": (in_place, {"inputs-unchanged"}),
    "bank changed in place": (on_the_bank, {"inputs-unchanged", "deterministic"}),
    "double": (lambda s, *_: s.double(), {"shape-and-dtype"}),
    "one score per image": (lambda s, *_: s.mean(1), {"shape-and-dtype"}),
    "NaN without a signal": (lambda s, *_: s / s.abs().amax(1, keepdim=True), {"finite"}),
    "noise": (lambda s, *_: s + torch.rand_like(s), {"deterministic", "no-global-random"}),
    "position": (lambda s, *_: s + torch.arange(s.shape[1]), {"patches-move-along"}),
    "none": (lambda s, *_: None, {"shape-and-dtype"}),
}


@pytest.mark.parametrize("fault", DETECTORS)
def test_a_broken_detector_is_caught(fault: str) -> None:
    change, wanted = DETECTORS[fault]
    failures = failed(check_detector, broken_detector(change))
    assert wanted <= set(failures), failures


def test_a_detector_may_look_at_other_patches() -> None:
    position = broken_detector(DETECTORS["position"][0])
    assert check_detector(position, per_patch=False)["patches-move-along"].status is Status.SKIPPED


def test_a_detector_without_scores_is_caught() -> None:
    assert "expected a method, got None" in failed(check_detector, object())["protocol"]


def test_a_detector_is_given_its_own_bank() -> None:
    bank = random_bank(heads=3, head_dim=4, probe="layers.1.attn")
    check_detector(Plain(), bank=bank, probe="layers.1.attn", grids=((3, 5),))
