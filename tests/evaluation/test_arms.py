"""Arms: random masks, and values as the command line writes them."""

from __future__ import annotations

import numpy as np
import pytest

from uvr_evaluation import arms


def test_random_masks_have_the_area_and_follow_the_seed() -> None:
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :3, :3] = True
    scattered = arms.scattered(masks, [5, 6])
    assert scattered.sum((1, 2)).tolist() == [9, 0]
    assert np.array_equal(scattered, arms.scattered(masks, [5, 6]))
    assert not np.array_equal(scattered, arms.scattered(masks, [7, 6]))


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("0.5", 0.5), ("true", True), ("1:0.8", (1, 0.8)), ("matched", "matched")]
)
def test_values(text: str, value: object) -> None:
    assert arms.parse_value(text) == value
