"""Thresholds for shares that a benign set cannot resolve."""

from __future__ import annotations

import numpy as np
import pytest

from uvr_core.ops.tail import LONGEST, tail_of, threshold_at


def test_a_tail_is_the_largest_tenth() -> None:
    assert tail_of(range(100)) == tuple(float(n) for n in range(99, 89, -1))
    assert len(tail_of(range(5000))) == LONGEST
    assert tail_of([3.0, 1.0, 2.0]) == (3.0, 2.0)
    assert tail_of([1.0]) == (1.0,)


@pytest.mark.parametrize("draw", ["exponential", "normal", "gumbel"])
@pytest.mark.parametrize("share", [0.02, 0.002])
def test_the_share_is_kept_on_other_images(draw: str, share: float) -> None:
    """From 200 benign images, on average over sets, within a factor of two; a lighter tail is reached less."""
    rng = np.random.default_rng(0)
    reached = []
    for _ in range(60):
        threshold = threshold_at(tail_of(getattr(rng, draw)(size=200)), 200, share)
        reached.append((getattr(rng, draw)(size=20_000) >= threshold).mean())
    assert np.mean(reached) < 2 * share
    assert np.mean(reached) > share / 8


def test_it_rises_as_the_share_falls_and_never_lies_below_the_tail() -> None:
    tail = tail_of(np.random.default_rng(1).normal(size=300))
    thresholds = [threshold_at(tail, 300, share) for share in (0.5, 0.1, 0.05, 0.01, 0.001, 1e-6)]
    assert thresholds == sorted(thresholds)
    assert thresholds[0] == tail[-1]


def test_equal_scores_and_a_single_one_give_their_own() -> None:
    assert threshold_at((2.0, 2.0), 20, 0.001) == 2.0
    assert threshold_at((2.0,), 1, 0.001) == 2.0


@pytest.mark.parametrize(
    ("tail", "images", "share"), [((), 5, 0.1), ((1.0, 0.5), 1, 0.1), ((1.0,), 5, 0.0), ((1.0,), 5, 1.5)]
)
def test_what_makes_no_sense_is_refused(tail: tuple[float, ...], images: int, share: float) -> None:
    with pytest.raises(ValueError, match="expected a tail"):
        threshold_at(tail, images, share)
