"""One interceptor on a model at a time."""

from __future__ import annotations

import numpy as np
import pytest
from runner import Runner

import uvr_core
from uvr_plugins.detectors import Oracle


def one_masked() -> np.ndarray:
    """Masks of three samples, the first and last empty."""
    mask = np.zeros((3, 8, 8), bool)
    mask[1, 2:5, 3:6] = True
    return mask


def test_attaching_twice_is_refused_and_harms_nothing(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    stock = runner.run()
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy="block"):
        regulated = runner.run()
        with pytest.raises(uvr_core.UnsupportedRuntime, match="already regulated"):
            uvr_core.attach(runner.pipe)
        assert np.array_equal(runner.run(), regulated)
    assert np.array_equal(runner.run(), stock)
