"""What calibration keeps: the same figures as of all scores, in a few numbers an image."""

from __future__ import annotations

import numpy as np
import pytest

from uvr_core.fit.marks import PATCHES, marks_of
from uvr_core.fit.scores import ScoredRuns, image_scores
from uvr_core.ops.evidence import Evidence


def runs(seed: int, images: int, grid: tuple[int, int], masked: bool) -> ScoredRuns:
    rng = np.random.default_rng(seed)
    patches = grid[0] * grid[1]
    scores = {path: rng.normal(0, 1, (images, 3, patches)).astype(np.float32) for path in "ab"}
    return ScoredRuns(scores, [1.0, 0.7, 0.4], grid, rng.random((images, *grid)) < 0.2 if masked else None)


def test_peaks_and_patches_are_those_of_all_scores() -> None:
    batches = [runs(0, 3, (4, 5), True), runs(1, 2, (4, 5), True)]
    marks = marks_of(iter(batches), (0.0, 0.9), 2)
    assert marks.images == 5
    assert marks.sigmas == [1.0, 0.7, 0.4]
    assert list(marks.peaks) == [(m, path) for m in (0.0, 0.9) for path in "ab"]
    for m, path in marks.peaks:
        whole = Evidence.over(np.concatenate([part.scores[path] for part in batches]), m)
        np.testing.assert_allclose(marks.peaks[m, path], image_scores(whole, 2))
        np.testing.assert_allclose(marks.patches[m, path], whole.swapaxes(0, 1).reshape(3, -1))
    assert np.array_equal(marks.truth, np.concatenate([part.masks.reshape(-1) for part in batches]))


@pytest.mark.parametrize("masked", [False, True])
def test_of_a_large_grid_some_patches_are_kept_spread_evenly(masked: bool) -> None:
    grid = (64, 64)
    batch = runs(2, 2, grid, masked)
    if masked:
        batch.masks[:] = False
        batch.masks[:, :, :16] = True  # a quarter
    marks = marks_of([batch], (0.0,), 1)
    np.testing.assert_allclose(marks.peaks[0.0, "a"], batch.scores["a"].max(-1))  # of all patches
    if not masked:
        assert marks.truth is None
        assert marks.patches == {}
        return
    assert marks.patches[0.0, "a"].shape == (3, 2 * PATCHES)
    assert marks.truth.mean() == pytest.approx(0.25, abs=0.05)
