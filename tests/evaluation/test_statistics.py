"""Intervals of rates and of their differences."""

from __future__ import annotations

import numpy as np
import pytest

from uvr_evaluation.statistics import paired_difference


def test_paired_difference_covers_and_is_paired() -> None:
    rng = np.random.default_rng(0)
    one = rng.random(200) < 0.5
    same = paired_difference(list(one), list(one))
    assert same == (0.0, 0.0, 0.0)
    other = one.copy()
    other[:20] = ~other[:20]
    mean, low, high = paired_difference(list(one), list(other))
    assert low <= mean <= high
    assert high - low < 0.1, "pairs that agree add no spread; unpaired, it would be 0.2"
    assert paired_difference([], []) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="as many"):
        paired_difference([True], [])
