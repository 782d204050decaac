"""Scores over runs and images, and figures over them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fitting import OPTIONS, UNSAFE
from hypothesis import given, settings
from hypothesis import strategies as st

import uvr_core
from uvr_core.fit.scores import auroc_of, image_scores, score_runs, scores_of


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


def test_a_batch_is_scored_at_every_probe_and_step_at_its_own_level() -> None:
    class Detector:
        def scores(self, features: Any, sigma: float, bank: Any, probe: str) -> Any:
            assert features.dtype == torch.float32
            return features.sum(-1) * sigma + (100 if probe == "b" else 0)

    features = {(path, step): torch.full((2, 3, 4), step + 1.0).half() for path in "ab" for step in range(2)}
    scores = scores_of(Detector(), SimpleNamespace(probes=("a", "b")), features, [1.0, 0.25])
    assert {path: each.shape for path, each in scores.items()} == {"a": (2, 2, 3), "b": (2, 2, 3)}
    assert scores["a"][:, :, 0].tolist() == [[4.0, 2.0]] * 2
    assert scores["b"][:, :, 0].tolist() == [[104.0, 102.0]] * 2
