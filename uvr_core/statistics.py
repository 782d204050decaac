"""Intervals and rates as every UVR table states them."""

from __future__ import annotations


def wilson(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion, (low, high) in 0..1; (0, 1) when total is 0."""
    if total == 0:
        return (0.0, 1.0)
    from scipy.stats import binomtest

    interval = binomtest(hits, total).proportion_ci(confidence, method="wilson")
    return (float(interval.low), float(interval.high))
