"""Logistic regression: held against scikit-like odds that are known, and against bad input."""

from __future__ import annotations

import pytest
import torch

from uvr_core import UVRError
from uvr_core.fit.logistic import log_odds, log_odds_among_likes


def normals(count: int, mean: list[float], seed: int) -> torch.Tensor:
    return torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed)) + torch.tensor(mean)


def test_of_two_normals_it_gives_their_log_odds() -> None:
    """Unit normals about +m and -m have the log odds 2 m . x; the third axis tells nothing, whatever its scale."""
    mean = [0.8, -0.4, 0.0]
    scale = torch.tensor([1.0, 1.0, 30.0])
    positive, negative = normals(20_000, mean, 0) * scale, normals(20_000, [-x for x in mean], 1) * scale
    vector, offset = log_odds(positive, [negative], 1e-6)
    assert (vector * scale).tolist() == pytest.approx([1.6, -0.8, 0.0], abs=0.08)
    assert offset == pytest.approx(0.0, abs=0.05)
    assert vector.dtype == torch.float32


def test_sets_weigh_alike_whatever_their_size() -> None:
    """The classes are even: the odds do not hang on how many rows there are of each."""
    positive, near, far = normals(4000, [1.0], 0), normals(4000, [-1.0], 1), normals(4000, [-3.0], 2)
    vector, offset = log_odds(positive, [near, far], 1e-4)
    fewer, other = log_odds(positive, [near[:2000], far, torch.zeros(0, 1)], 1e-4)
    assert fewer.tolist() == pytest.approx(vector.tolist(), rel=0.1)
    assert other == pytest.approx(offset, abs=0.15)


def test_classes_that_are_wide_apart_have_finite_odds() -> None:
    vector, offset = log_odds(torch.full((3, 2), 5.0), [torch.full((3, 2), -5.0)], 1e-4)
    assert torch.isfinite(vector).all()
    assert float(torch.full((2,), 5.0) @ vector + offset) > 2


def test_what_is_most_like_the_positives_is_told_apart_better() -> None:
    """Grammar lies far along the first axis, and other names, one in fifty, differ along the second alone."""
    positive, grammar, names = (
        normals(count, mean, seed)
        for count, mean, seed in ((200, [4.0, 1.5], 0), (4000, [-4.0, 0.0], 1), (80, [4.0, -1.5], 2))
    )
    negatives = [torch.cat([grammar, names])]

    def apart(vector: torch.Tensor) -> float:
        """The share of names that score below nine in ten of the positives."""
        return float(((names @ vector) < (positive @ vector).quantile(0.1)).float().mean())

    plain, among = log_odds(positive, negatives)[0], log_odds_among_likes(positive, negatives)[0]
    assert apart(among) > apart(plain) + 0.1
    assert among[1] / among[0] > 1.5 * plain[1] / plain[0]


@pytest.mark.parametrize(
    ("positive", "negatives", "says"),
    [
        (torch.zeros(0, 2), [torch.zeros(3, 2)], "got 0 and 3"),
        (torch.zeros(3, 2), [torch.zeros(0, 2)], "got 3 and 0"),
        (torch.tensor([[torch.nan, 0.0]]), [torch.zeros(3, 2)], "NaN or Inf"),
    ],
)
def test_bad_input(positive: torch.Tensor, negatives: list[torch.Tensor], says: str) -> None:
    with pytest.raises(UVRError, match=says):
        log_odds(positive, negatives)


def test_it_can_be_fitted_in_inference_mode() -> None:
    with torch.inference_mode():
        vector, _ = log_odds(torch.ones(4, 2), [-torch.ones(4, 2)])
    assert (vector > 0).all()
