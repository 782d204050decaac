"""From scores to masks: what closing, hole filling and the choice of components must and must not do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from uvr_core.ops.masks import core_of, ring_of, thinned


def grid(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


def core(hits: np.ndarray, scores: np.ndarray | None = None, **options: float) -> np.ndarray:
    scores = hits.astype(np.float32) if scores is None else scores
    return core_of(hits, scores, **options)  # type: ignore[arg-type]


def test_no_hits_give_an_empty_core() -> None:
    empty = np.zeros((4, 6), bool)
    assert core(empty).shape == (4, 6)
    assert not core(empty).any()
    assert not ring_of(empty, 2).any()


@pytest.mark.parametrize("side", range(4))
def test_an_object_cut_by_the_edge_is_not_eroded(side: int) -> None:
    """A plain closing erodes at the border, where there is nothing outside to close against."""
    hits = np.rot90(grid("##....", "##....", "......", "......"), side)
    assert np.array_equal(core(hits), hits)


def test_a_one_patch_gap_is_closed_also_at_the_edge() -> None:
    hits = grid("#.#...", "###...", "......")
    assert np.array_equal(core(hits), grid("###...", "###...", "......"))


def test_a_hole_is_filled_and_a_bay_is_not() -> None:
    ring = grid("#####", "#...#", "#...#", "#...#", "#####")
    assert core(ring).all()
    bay = grid("####.", "#....", "#....", "#....", "####.")
    assert not core(bay)[2, 2:].any()


def test_components_are_kept_heaviest_first_until_the_mass_is_covered() -> None:
    hits = grid("##....#", ".......", "....#..")
    scores = np.where(hits, 0.0, -9.0).astype(np.float32)
    scores[0, :2], scores[0, 6], scores[2, 4] = 3.0, 2.0, 1.0  # masses over the smallest hit: 4, 1, 0
    assert np.array_equal(core(hits, scores, mass_ratio=0.5), grid("##.....", ".......", "......."))
    assert np.array_equal(core(hits, scores, mass_ratio=0.9), grid("##....#", ".......", "......."))
    assert np.array_equal(core(hits, scores, mass_ratio=1.0), hits)


def test_mass_is_scores_not_area() -> None:
    hits = grid("###...#")
    scores = np.where(hits, 1.0, 0.0).astype(np.float32)
    scores[0, 6] = 50.0
    assert np.array_equal(core(hits, scores, mass_ratio=0.3), grid("......#"))


def test_diagonal_neighbours_are_one_component() -> None:
    hits = grid("#....", ".#...", "....#")
    scores = hits.astype(np.float32)
    scores[2, 4] = 1.5
    scores[0, 0] = 3.0
    kept = core(hits, scores, mass_ratio=0.5)
    assert kept[0, 0]
    assert kept[1, 1]
    assert not kept[2, 4]


def test_small_components_are_dropped_even_when_heavy() -> None:
    hits = grid("##...#", "##....")
    scores = hits.astype(np.float32)
    scores[0, 5] = 100.0
    assert np.array_equal(core(hits, scores, min_area=2), grid("##....", "##...."))
    assert not core(hits, scores, min_area=5).any()


def test_the_ring_is_a_chessboard_distance_around_the_core() -> None:
    one = grid(".....", ".....", "..#..", ".....", ".....")
    assert np.array_equal(ring_of(one), grid(".....", ".###.", ".#.#.", ".###.", "....."))
    assert ring_of(one, 2).sum() == 24
    assert not ring_of(one, 0).any()


_SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=_SHAPES, ratio=st.floats(0, 1), area=st.integers(1, 3))
def test_core_properties(data: st.DataObject, shape: tuple[int, int], ratio: float, area: int) -> None:
    hits = data.draw(arrays(bool, shape))
    finite = st.floats(-100, 100, width=32)
    scores = data.draw(arrays(np.float32, shape, elements=finite))
    before = hits.copy(), scores.copy()
    kept = core(hits, scores, mass_ratio=ratio, min_area=area)
    assert np.array_equal(hits, before[0])
    assert np.array_equal(scores, before[1])
    labels, count = ndimage.label(kept, np.ones((3, 3)))
    for component in range(1, count + 1):
        assert (hits & (labels == component)).any(), "a kept component without a hit"
        assert (labels == component).sum() >= area
    everything = core(hits, scores)
    assert not (kept & ~everything).any(), "a smaller mass ratio kept more"
    assert not (hits & ~everything).any(), "ratio 1 lost a hit"
    if area == 1 and hits.any():
        assert kept.any()
    for turn in range(4):  # no side of the image is special
        turned = core(np.rot90(hits, turn), np.rot90(scores, turn))
        assert np.array_equal(np.rot90(turned, -turn), everything)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), shape=_SHAPES, radius=st.integers(1, 3))
def test_ring_against_brute_force(data: st.DataObject, shape: tuple[int, int], radius: int) -> None:
    mask = data.draw(arrays(bool, shape))
    expected = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        expected[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = True
    assert np.array_equal(ring_of(mask, radius), expected & ~mask)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40)), st.integers(1, 60))
def test_thinning_takes_as_many_patches_as_it_may_and_none_that_is_not_there(mask: np.ndarray, count: int) -> None:
    some = thinned(mask, count)
    assert not (some & ~mask).any()
    assert some.sum() == min(count, mask.sum())
    if mask.sum() <= count:
        assert (some == mask).all()
    else:
        bounds = np.arange(count + 1) * mask.sum() // count
        assert np.array_equal(np.searchsorted(bounds, np.flatnonzero(some[mask]), "right"), np.arange(count) + 1)


def test_thinning_does_not_keep_to_some_columns() -> None:
    some = thinned(np.ones((64, 64), bool), 512)
    assert some.any(0).all()
    assert some.any(1).all()
    assert some.sum(0).max() <= 24
    assert some.sum(1).max() <= 9
