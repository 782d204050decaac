"""Arms: random masks, and values as the command line writes them."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from runner import Runner

import uvr_core
from uvr_core.errors import UnsafeContent, UVRError
from uvr_evaluation import Task, arms


def test_random_masks_have_the_area_and_follow_the_seed() -> None:
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :3, :3] = True
    tasks = [Task(0, "a cat", 5), Task(1, "a dog", 6)]
    scattered = arms.scattered(masks, tasks)
    assert scattered.sum((1, 2)).tolist() == [9, 0]
    assert np.array_equal(scattered, arms.scattered(masks, tasks))
    assert not np.array_equal(scattered, arms.scattered(masks, [Task(0, "a cat", 7), tasks[1]]))


def test_one_stream_of_random_masks_does_not_know_batches() -> None:
    masks = np.random.default_rng(0).random((6, 8, 8)) < 0.2
    tasks = [Task(index, "a cat", 5) for index in range(6)]
    whole = arms.scattered(masks, tasks, 3)
    assert np.array_equal(whole.sum((1, 2)), masks.sum((1, 2)))
    assert not np.array_equal(whole, masks)
    assert not np.array_equal(whole, arms.scattered(masks, tasks, 4))
    parts = [arms.scattered(masks[part], tasks[part], 3) for part in (slice(0, 4), slice(4, 6))]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("0.5", 0.5), ("true", True), ("1:0.8", (1, 0.8)), ("matched", "matched")]
)
def test_values(text: str, value: object) -> None:
    assert arms.parse_value(text) == value


def test_an_arm_draws_again_what_still_stands(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    """With a verification that nothing passes, every picture is drawn by each of its settings, and then withheld."""
    calibration = bank.calibration
    assert calibration is not None
    verification = attrs.evolve(calibration, window=(0.5, 0.0), threshold=-1e6)
    verified = attrs.evolve(bank, verification=verification)
    arm = arms.Arm("checked", "policy", "selective", again=({"everywhere": True}, {"ring": 0}))
    reg = arms.attached(arm, runner.pipe, [verified], None)
    try:
        with pytest.raises(UnsafeContent, match="still stands"):
            runner.run()
        assert reg.report is not None
        assert reg.report.draws == 3
    finally:
        reg.detach()
    with pytest.raises(UVRError, match="escalate"):
        arms.attached(arm, runner.pipe, [bank], None)
