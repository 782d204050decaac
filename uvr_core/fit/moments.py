"""Moments of features, and the direction in which a concept's patches differ most from the others."""

from __future__ import annotations

from typing import Any

import attrs
import torch

FULL_COVARIANCE = 768  # widths up to this are whitened fully, larger ones per channel


@attrs.define
class Moments:
    """Count, sum and second moment of feature vectors (n, C), in float64.

    `full`: the whole covariance, not its diagonal alone; None: up to a width of FULL_COVARIANCE.
    """

    full: bool | None = None
    n: int = 0
    total: Any = 0.0
    second: Any = 0.0

    def add(self, x: torch.Tensor) -> None:
        x = x.double()
        if self.full is None:
            self.full = x.shape[1] <= FULL_COVARIANCE
        self.n += len(x)
        self.total = self.total + x.sum(0)
        self.second = self.second + (x.T @ x if self.full else x.square().sum(0))

    @property
    def mean(self) -> torch.Tensor:
        return self.total / self.n  # type: ignore[no-any-return]

    @property
    def covariance(self) -> torch.Tensor:
        """(C, C), or the (C,) diagonal."""
        mean = self.mean
        return self.second / self.n - (torch.outer(mean, mean) if self.full else mean.square())  # type: ignore[no-any-return]


def whitened_direction(unsafe: Moments, other: Moments, shrink: float = 0.1) -> tuple[torch.Tensor, float]:
    """Fisher's linear discriminant with a shrunk pooled covariance, scaled to unit deviation over the others.

    Returns:
        direction (C,) float32 and offset, so that x . direction + offset has mean 0, deviation 1 over others.
    """
    difference = unsafe.mean - other.mean
    pooled = (unsafe.n * unsafe.covariance + other.n * other.covariance) / (unsafe.n + other.n)
    if pooled.ndim == 2:
        scale = pooled.diagonal().mean().clamp_min(1e-12)
        shrunk = (1 - shrink) * pooled + shrink * scale * torch.eye(len(pooled), dtype=torch.float64)
        direction = torch.linalg.solve(shrunk, difference)
        variance = direction @ other.covariance @ direction
    else:
        scale = pooled.mean().clamp_min(1e-12)
        direction = difference / ((1 - shrink) * pooled + shrink * scale)
        variance = (direction.square() * other.covariance).sum()
    direction = direction / variance.clamp_min(1e-12).sqrt()
    return direction.float(), -float(direction @ other.mean)
