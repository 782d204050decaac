"""Thresholds beyond what a benign set resolves: the tail of its scores, continued as an exponential."""

from __future__ import annotations

import math
from collections.abc import Sequence

LONGEST = 64  # scores of a tail that are kept
_SHARE = 0.1  # of the images, in a tail


def tail_of(scores: Sequence[float]) -> tuple[float, ...]:
    """The largest of n scores, descending: a tenth of them, at most LONGEST, and at least two."""
    count = min(max(2, math.ceil(_SHARE * len(scores))), LONGEST, len(scores))
    return tuple(sorted((float(score) for score in scores), reverse=True)[:count])


def threshold_at(tail: Sequence[float], images: int, share: float) -> float:
    """The score that a share of images is expected to reach.

    Peaks over a threshold (Pickands 1975) with an exponential tail: u = tail[-1], reached by k of n images, and mean
    excess m over it give P(score >= t) = k/n exp(-(t - u) / m). Not below u.

    Args:
        tail: the k largest scores of the benign images, descending.
        images: how many benign images there were, n.
        share: in 0..1.

    Raises:
        ValueError: an empty tail, more scores than images, or a share outside 0..1.
    """
    if not tail or len(tail) > images or not 0 < share <= 1:
        raise ValueError(f"expected a tail of at most {images} scores and a share in 0..1, got {len(tail)} and {share}")
    lowest, reached = tail[-1], len(tail) / images
    excess = sum(score - lowest for score in tail[:-1]) / max(len(tail) - 1, 1)
    return lowest + excess * max(0.0, math.log(reached / share))
