"""The direction of a concept: moments, and whitening."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from uvr_core.fit.moments import Moments, whitened_direction
from uvr_core.fit.scores import auroc_of


def moments(x: torch.Tensor, full: bool) -> Moments:
    result = Moments(full)
    for part in x.split(37):  # in uneven pieces, as images come
        result.add(part)
    return result


def stretched(count: int, shift: float, seed: int) -> torch.Tensor:
    """(count, 12) Gaussian: the shift lies on a quiet axis, beside an axis that is 30 times louder."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 12, generator=generator) * torch.tensor([30.0] + [1.0] * 11) + 5
    x[:, 1] += shift
    x[:, 0] += shift * 6  # a difference of means that the loud axis drowns
    return x


@pytest.mark.parametrize("full", [True, False])
def test_moments_are_numpys(full: bool) -> None:
    x = stretched(400, 1.0, 0)
    m = moments(x, full)
    np.testing.assert_allclose(m.mean, x.double().mean(0), atol=1e-6)
    covariance = np.cov(x.double().numpy().T, bias=True)
    np.testing.assert_allclose(m.covariance, covariance if full else np.diag(covariance), atol=1e-4)


@pytest.mark.parametrize("full", [True, False])
def test_scores_have_mean_0_and_deviation_1_over_the_others(full: bool) -> None:
    unsafe, other = stretched(300, 3.0, 0), stretched(3000, 0.0, 1)
    direction, offset = whitened_direction(moments(unsafe, full), moments(other, full))
    scores = other.double() @ direction.double() + offset
    assert abs(float(scores.mean())) < 1e-4
    deviation = float(scores.std(correction=0))
    # With the diagonal alone the deviation is exact only for independent channels.
    assert deviation == pytest.approx(1, abs=1e-4 if full else 0.05)
    assert float((unsafe.double() @ direction.double() + offset).mean()) > 1


@pytest.mark.parametrize("full", [True, False])
def test_whitening_separates_better_than_the_difference_of_means(full: bool) -> None:
    train, test = [[stretched(1000, s, seed) for s, seed in ((2.5, i), (0.0, i + 1))] for i in (0, 2)]
    direction, _ = whitened_direction(*(moments(x, full) for x in train))
    raw = train[0].mean(0) - train[1].mean(0)

    def auroc(axis: torch.Tensor) -> float:
        truth = np.repeat([True, False], 1000)
        value = auroc_of((torch.cat(test) @ axis).numpy(), truth)
        assert value is not None
        return value

    assert auroc(direction) > 0.85
    assert auroc(direction) > auroc(raw) + 0.1


def test_a_constant_channel_does_no_harm() -> None:
    unsafe, other = torch.zeros(20, 4), torch.zeros(20, 4)
    unsafe[:, 0] = 1 + 0.1 * torch.randn(20, generator=torch.Generator().manual_seed(0))
    other[:, 0] = 0.1 * torch.randn(20, generator=torch.Generator().manual_seed(1))
    for full in (True, False):
        direction, offset = whitened_direction(moments(unsafe, full), moments(other, full))
        assert torch.isfinite(direction).all()
        assert np.isfinite(offset)
