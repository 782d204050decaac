"""What the pictures show."""

from __future__ import annotations

import numpy as np
from flowing import scored

from uvr_analysis import figures


def test_mask_frames_show_score_threshold_and_truth() -> None:
    masks, scores = np.zeros((1, 3, 4), bool), np.zeros((1, 2, 12))
    masks[0, 0, 0] = True
    scores[0, 1, 11] = 1.0  # nothing at first, then the last patch
    before, after = (
        np.asarray(frame).astype(int)
        for frame in figures.mask_frames(scored(scores, masks), "a", threshold=0.5, side=64)
    )
    assert before.shape == after.shape == (48 + 20, 64 + 8, 3)
    corner, far = (16, 4), (16 + 40, 4 + 56)  # inside the first patch's border; in the middle of the last patch
    assert before[corner].tolist() == after[corner].tolist() == [0, 220, 255]
    assert before[far].tolist() == [128, 128, 128]
    assert after[far][0] > 160 > 100 > after[far][1]
    assert (after[16:64, 4:68] == 255).all(-1).any()  # an outline of the hit
    assert not (before[16:64, 4:68] == 255).all(-1).any()
