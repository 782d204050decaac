"""Scores over runs and images, and figures over them."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from fitting import OPTIONS, UNSAFE
from hypothesis import given, settings
from hypothesis import strategies as st

import uvr_core
from uvr_core import UVRError
from uvr_core.fit.scores import auroc_of, best_threshold, block_at, image_scores, score_runs, scored


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=12))
def test_auroc_against_brute_force(pairs: list[tuple[int, bool]]) -> None:
    scores, truth = np.array([s for s, _ in pairs], np.float32), np.array([t for _, t in pairs])
    wins = [float(p > n) + 0.5 * float(p == n) for p in scores[truth] for n in scores[~truth]]
    expected = sum(wins) / len(wins) if wins else None
    assert auroc_of(scores, truth) == (None if expected is None else pytest.approx(expected))


def test_image_scores_are_the_nth_largest() -> None:
    scores = np.array([[[3.0, 1.0, 2.0], [5.0, 9.0, 7.0]]], np.float32)
    assert image_scores(scores, 1).tolist() == [[3.0, 9.0]]
    assert image_scores(scores, 2).tolist() == [[2.0, 7.0]]


def test_scores_do_not_depend_on_the_batch_size(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    one, three = (score_runs(pipe, bank, UNSAFE[:3], batch_size=n, generate=OPTIONS) for n in (1, 3))
    for probe in bank.probes:
        assert one.scores[probe].shape == (3, 2, 64)
        np.testing.assert_allclose(one.scores[probe], three.scores[probe], atol=0.05)


def test_a_call_is_scored_while_it_runs_at_its_own_level(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    """One batch at a time, and what a detector is shown is let go before the next call's."""
    alive: list[int] = []
    shown: list[weakref.ref[torch.Tensor]] = []

    class Detector:
        def scores(self, features: torch.Tensor, sigma: float, bank: Any, probe: str) -> torch.Tensor:
            assert features.dtype == torch.float32
            alive.append(sum(each() is not None for each in shown))
            shown.append(weakref.ref(features))
            return features.sum(-1) * sigma + (1000 if probe == bank.probes[1] else 0)

    batches = scored(pipe, bank, UNSAFE[:3], detector=Detector(), batch_size=2, generate=OPTIONS)
    first = next(batches)
    assert len(shown) == 4  # two probes in two steps of one batch
    assert {path: each.shape for path, each in first.scores.items()} == dict.fromkeys(bank.probes, (2, 2, 64))
    assert first.sigmas[0] == 1 > first.sigmas[1]
    assert (first.scores[bank.probes[1]] > 500).all()
    assert (first.scores[bank.probes[0]] < 500).all()
    assert [runs.images for runs in batches] == [1]
    assert max(alive) <= 1


def test_the_block_by_which_most_reach_the_budgets_threshold_is_taken() -> None:
    others = {name: np.arange(100, dtype=np.float32) for name in ("a", "b", "c")}
    shown = {"a": np.full(10, 98.5), "b": np.full(10, 200.0), "c": np.full(10, 150.0)}
    probe, threshold = block_at({k: v.astype(np.float32) for k, v in shown.items()}, others, 0.01)
    assert probe == "b"  # b and c locate all ten; b lies further apart
    assert 98 < threshold < 98.1
    assert (others["b"] >= threshold).sum() == 1


@pytest.mark.parametrize(("lacking", "says"), [("shown", "shows the concept"), ("others", "is without the concept")])
def test_a_block_cannot_be_chosen_from_one_kind_of_image(lacking: str, says: str) -> None:
    sets = {name: {"a": np.zeros(0 if name == lacking else 3, np.float32)} for name in ("shown", "others")}
    with pytest.raises(UVRError, match=f"no picture of the calibration {says}"):
        block_at(sets["shown"], sets["others"], 0.1)


def test_a_weight_is_as_good_as_so_many_copies() -> None:
    scores, truth = np.array([3.0, 2.0, 1.5, 1.0, 0.5]), np.array([True, False, True, False, True])
    weight = np.array([1, 3, 1, 2, 1])
    copies = np.repeat(scores, weight), np.repeat(truth, weight)
    for beta in (0.5, 1.0, 2.0):
        assert best_threshold(scores, truth, beta, weight.astype(float)) == best_threshold(*copies, beta)
