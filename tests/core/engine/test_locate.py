"""From scores to masks: thresholds, growth, memory, and where a concept comes from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from runner import Runner
from scripted import GRID, Script, play, scored

import uvr_core
from uvr_core.adapter import Layout


def test_nan_in_a_score_raises(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    with torch.no_grad():
        runner.pipe.transformer.single_transformer_blocks[0].attn.to_v.weight[0, 0] = torch.nan
    with uvr_core.attach(runner.pipe, concepts=bank), pytest.raises(uvr_core.UVRError, match="NaN or Inf in the score"):
        runner.run()


def test_where_a_concept_comes_from_is_told_once_when_it_is_located_first() -> None:
    """Later steps are regulated, so that they would mislead; an image is asked about in its own first step."""
    detector = Script([scored({1: 9.0}, {}), scored({1: 9.0}, {2: 9.0})], [[-1.0, 7.0], [5.0, 3.0]])
    driven, _ = play(detector)
    assert [f.from_source for f in driven.report.findings] == [False, True]
    (located,) = [state.located for state in driven.states]
    assert located is not None
    assert located.from_source is not None
    assert located.from_source.tolist() == [False, True]
    assert "from the instruction" in str(driven.report)


@pytest.mark.parametrize("told", [None, [float("nan"), float("nan")]])
def test_an_unknown_origin_counts_as_the_source(told: list[float] | None) -> None:
    driven, _ = play(Script([scored({1: 9.0}, {1: 9.0})], [told]), steps=1)
    located = driven.states[0].located
    assert located is not None
    assert located.from_source is not None
    assert located.from_source.tolist() == [True, True]


def test_without_references_nobody_is_asked() -> None:
    detector = Script([scored({1: 9.0}, {})], [[1.0, 1.0]])
    driven, _ = play(detector, Layout(GRID), steps=1)
    assert detector.asked == 0
    located = driven.states[0].located
    assert located is not None
    assert located.from_source is None


@pytest.mark.parametrize(
    ("grow", "patches"),
    [(5.0, {1, 2}), (3.0, {1, 2, 3}), (7.0, {1, 2}), (8.5, {1, 2})],
    ids=["as the threshold", "below: what touches a hit joins", "above: those alone", "above, too few: the hits"],
)
def test_the_mask_is_made_by_the_patch_threshold(grow: float, patches: set[int]) -> None:
    scores = {1: 9.0, 2: 7.5, 3: 4.0, 11: 4.0}
    driven, _ = play(Script([scored(scores, {})], [None]), steps=1, grow=grow, min_patches=2)
    assert set(np.flatnonzero(driven.states[0].core[0]).tolist()) == patches


def test_a_high_patch_threshold_drops_weak_hits() -> None:
    scores = {1: 9.0, 2: 7.5, 11: 6.0}
    wide, _ = play(Script([scored(scores, {})], [None]), steps=1, min_patches=2)
    tight, _ = play(Script([scored(scores, {})], [None]), steps=1, grow=7.0, min_patches=2)
    assert set(np.flatnonzero(wide.states[0].core[0]).tolist()) >= {1, 2, 11}
    assert set(np.flatnonzero(tight.states[0].core[0]).tolist()) == {1, 2}


def test_a_memory_adds_up_what_no_single_step_shows() -> None:
    """Threshold 5; 4 in each of two steps, in one image; a single 4 in the other, which fades."""
    steps = [scored({1: 4.0}, {2: 4.0}), scored({1: 4.0}, {}), scored({}, {})]
    forgetful, _ = play(Script(steps, [None] * 3), steps=3)
    assert [f.located for f in forgetful.report.findings] == [False, False]
    driven, _ = play(Script(steps, [None] * 3), steps=3, memory=0.9)
    found, other = driven.report.findings
    assert (found.located, found.first_step, found.patches, other.located) == (True, 1, 1, False)
    assert found.score == pytest.approx(4 * 1.9 / (0.8 * 1.81 + 0.2 * 1.9**2) ** 0.5)
    assert found.heat.max() == found.score
    assert other.score == 4.0
