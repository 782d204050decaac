"""The direction of a concept: moments, and whitening."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from uvr_core.fit.moments import NARROW, SAMPLED, Moments, Shared, moments_of, whitened_direction
from uvr_core.fit.scores import auroc_of


def moments(x: torch.Tensor, shared: Shared | None = None) -> Moments:
    result = Moments(shared)
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


def test_moments_are_numpys() -> None:
    x = stretched(400, 1.0, 0)
    m = moments(x)
    np.testing.assert_allclose(m.mean, x.double().mean(0), atol=1e-6)
    np.testing.assert_allclose(m.covariance, np.cov(x.double().numpy().T, bias=True), atol=1e-4)


def test_a_shared_covariance_is_that_within_the_classes() -> None:
    """Three classes far apart, in float32, far from zero: what lies between their means is no part of it."""
    classes = [stretched(300, shift, seed) + 1000 * shift for seed, shift in enumerate((0.0, 3.0, -2.0))]
    shared = Shared()
    each = [moments(x, shared) for x in classes]
    for m, x in zip(each, classes, strict=True):
        np.testing.assert_allclose(m.mean, x.double().mean(0), rtol=1e-5)
    within = sum(len(x) * np.cov(x.double().numpy().T, bias=True) for x in classes) / 900
    np.testing.assert_allclose(shared.covariance(), within, atol=1e-2 * np.abs(within).max() ** 0.5)


@pytest.mark.parametrize("wide", [False, True])
def test_scores_have_mean_0_and_deviation_1_over_the_others(wide: bool) -> None:
    unsafe, other = stretched(300, 3.0, 0), stretched(3000, 0.0, 1)
    shared = Shared() if wide else None
    direction, offset = whitened_direction(moments(unsafe, shared), moments(other, shared))
    scores = other.double() @ direction.double() + offset
    assert abs(float(scores.mean())) < 1e-3
    # Of a shared covariance the spread is told by SAMPLED rows of the class: within some 20%.
    assert float(scores.std(correction=0)) == pytest.approx(1, abs=0.3 if wide else 1e-4)
    assert float((unsafe.double() @ direction.double() + offset).mean()) > 1


def test_one_covariance_serves_steps_whose_spread_differs() -> None:
    """Each step's scores have a deviation near 1, though all share one covariance."""
    shared = Shared()
    for scale in (1.0, 3.0):
        unsafe, other = stretched(300, 3.0, 0) * scale, stretched(3000, 0.0, 1) * scale
        pair = moments(unsafe, shared), moments(other, shared)
        direction, _ = whitened_direction(*pair)
        assert float((other @ direction).std()) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("wide", [False, True])
def test_whitening_separates_better_than_the_difference_of_means(wide: bool) -> None:
    train, test = [[stretched(1000, s, seed) for s, seed in ((2.5, i), (0.0, i + 1))] for i in (0, 2)]
    shared = Shared() if wide else None
    direction, _ = whitened_direction(*(moments(x, shared) for x in train))
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
    for shared in (None, Shared()):
        direction, offset = whitened_direction(moments(unsafe, shared), moments(other, shared))
        assert torch.isfinite(direction).all()
        assert np.isfinite(offset)


def test_what_a_wide_class_keeps_does_not_grow_with_its_rows() -> None:
    shared = Shared()
    wide = moments_of(NARROW + 1, shared)
    assert moments_of(NARROW, shared).shared is None
    for seed in range(20):
        wide.add(torch.randn(50, NARROW + 1, generator=torch.Generator().manual_seed(seed)))
    assert wide.n == 1000
    assert sum(map(len, wide.sample)) == SAMPLED
    assert shared.scatter.shape == (NARROW + 1, NARROW + 1)
    assert shared.scatter.dtype == torch.float32


def test_no_rows_are_nothing() -> None:
    for shared in (None, Shared()):
        empty = Moments(shared)
        empty.add(torch.zeros(0, 4))
        assert empty.n == 0
