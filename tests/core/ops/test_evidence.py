"""Scores gathered over steps: the weighted sum over its deviation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from uvr_core.ops.evidence import Evidence


@given(arrays(np.float32, (3, 6, 5), elements=st.floats(-50, 50, width=32)), st.floats(0.01, 1))
def test_evidence_is_the_weighted_sum_of_the_steps_over_its_deviation(scores: np.ndarray, memory: float) -> None:
    found = Evidence.over(scores, memory)
    for step in range(6):
        weights = memory ** np.arange(step, -1, -1.0)
        alike = np.where(np.eye(step + 1, dtype=bool), 1, 0.2)  # covariance of the steps
        want = np.einsum("isn,s->in", scores[:, : step + 1].astype(float), weights) / (weights @ alike @ weights) ** 0.5
        np.testing.assert_allclose(found[:, step], want, atol=1e-3)
    assert found.dtype == np.float32


def test_without_memory_every_step_stands_alone_bitwise() -> None:
    first, evidence = np.array([np.inf, -np.inf, 1.5], np.float32), Evidence(0.0)
    assert evidence.add(first) is first
    assert evidence.add(first) is first
    assert Evidence.over(first, 0.0) is first


def test_evidence_of_correlated_noise_keeps_its_deviation_and_a_weak_constant_sign_rises_above_it() -> None:
    rng = np.random.default_rng(5)
    shared, own = rng.normal(0, 0.2**0.5, (8000, 1, 4)), rng.normal(0, 0.8**0.5, (8000, 12, 4))
    noise = (shared + own).astype(np.float32)
    for memory in (0.5, 0.9, 1.0):
        assert np.abs(Evidence.over(noise, memory).std((0, 2)) - 1).max() < 0.03
    assert Evidence.over(noise + 1, 1.0)[:, -1].mean() == pytest.approx(12 / (0.8 * 12 + 0.2 * 144) ** 0.5, rel=0.02)
