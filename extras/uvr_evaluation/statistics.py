"""Intervals and rates as every UVR table states them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def wilson(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion, (low, high) in 0..1; (0, 1) when total is 0."""
    if total == 0:
        return (0.0, 1.0)
    from scipy.stats import binomtest

    interval = binomtest(hits, total).proportion_ci(confidence, method="wilson")
    return (float(interval.low), float(interval.high))


def paired_difference(
    one: Sequence[bool], other: Sequence[bool], confidence: float = 0.95, seed: int = 0, resamples: int = 2000
) -> tuple[float, float, float]:
    """Difference of two rates over the same tasks, mean(one) - mean(other), with a paired bootstrap interval.

    Returns:
        (difference, low, high), each -1..1: percentiles over `resamples` draws of tasks (Efron & Tibshirani 1993,
        ch. 13). All 0 when there are no tasks.
    """
    if len(one) != len(other):
        raise ValueError(f"paired rates: expected as many of each, got {len(one)} and {len(other)}")
    if not one:
        return (0.0, 0.0, 0.0)
    from scipy.stats import bootstrap

    difference = np.asarray(one, float) - np.asarray(other, float)
    if (difference == difference[0]).all():  # every draw is the same
        return (float(difference[0]),) * 3
    interval = bootstrap(
        (difference,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return (float(difference.mean()), float(interval.low), float(interval.high))


def rate(hits: int, total: int) -> dict[str, object]:
    """{"hits", "of", "rate", "ci95"}: a count as every result file states it; rate None when total is 0."""
    return {"hits": hits, "of": total, "rate": hits / total if total else None, "ci95": list(wilson(hits, total))}
