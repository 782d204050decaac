"""Masks of a user and of a judge, on the patch grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from runner import Runner, make_bank

from uvr_core import UVRError
from uvr_core.fit.regions import mask_of, shown_by
from uvr_core.fit.scores import score_runs


def test_array_masks_are_read_batch_by_batch(runner: Runner) -> None:
    masks = np.zeros((4, 8, 8), bool)
    for index in range(4):
        masks[index, index] = True
    bank = make_bank()
    runs = score_runs(
        runner.pipe, bank, ["a cat"] * 4, masks=masks, batch_size=2,
        generate={"height": 64, "width": 64, "num_inference_steps": 2},
    )  # fmt: skip
    assert np.array_equal(runs.masks, masks)
    with pytest.raises(UVRError, match=r"masks: expected \(2, 8, 8\)"):
        score_runs(
            runner.pipe, bank, ["a cat"] * 4, masks=masks[:3], batch_size=2,
            generate={"height": 64, "width": 64, "num_inference_steps": 2},
        )  # fmt: skip


def test_a_judge_is_asked_about_the_batch_and_an_array_is_cut_to_it() -> None:
    masks = np.arange(4 * 6).reshape(4, 2, 3) % 5 == 0
    asked: list[Any] = []

    def judge(images: Any, grid: tuple[int, int]) -> np.ndarray:
        asked.append((list(images), grid))
        return masks[:2].reshape(2, 6)  # rows of patches are as good

    assert np.array_equal(mask_of(masks, "ab", (2, 3), 2), masks[2:])
    assert np.array_equal(mask_of(judge, "ab", (2, 3), 2), masks[:2])
    assert asked == [(["a", "b"], (2, 3))]
    with pytest.raises(UVRError, match=r"masks: expected \(2, 2, 3\) .* for images 3 to 4, got \(1, 2, 3\)"):
        mask_of(masks, "ab", (2, 3), 3)


def test_only_a_judge_can_say_what_a_source_shows() -> None:
    def judge(images: Any, grid: tuple[int, int]) -> np.ndarray:
        return np.array([[[image == "b", False]] for image in images])

    assert shown_by(judge, "abbc", 1, 2, (1, 2)).tolist() == [True, True]
    assert shown_by(judge, "abbc", 2, 2, (1, 2)).tolist() == [True, False]
    assert shown_by(judge, None, 0, 2, (1, 2)) is None
    assert shown_by(np.zeros((2, 1, 2), bool), "ab", 0, 2, (1, 2)) is None
