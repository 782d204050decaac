"""Moments of features, and the direction in which a concept's patches differ most from the others."""

from __future__ import annotations

from typing import Any

import attrs
import torch

NARROW = 256  # widths up to this have a covariance per class, probe and step; wider ones share one per probe
SAMPLED = 64  # rows of a class that are kept beside a shared covariance, to tell how far scores spread
PER_CALL = 8  # at most so many of them from one call, so that they come from several images


@attrs.define(eq=False)
class Shared:
    """The covariance within several classes together, one matrix whatever their number: (C, C) float32 on their device.

    At width 3,072 it is 38 MB, where one for each of 28 steps and two classes would be 2.1 GB, of one probe. What that
    costs, and what a diagonal would, is in docs/design/measurements.md.
    """

    scatter: Any = None
    members: list[Moments] = attrs.field(factory=list)
    _factors: dict[float, torch.Tensor] = attrs.field(factory=dict)

    def add(self, deviations: torch.Tensor) -> None:
        """Add rows (n, C), less their class's reference."""
        if self.scatter is None:
            self.scatter = deviations.new_zeros(deviations.shape[1], deviations.shape[1])
        self.scatter.addmm_(deviations.T, deviations)
        self._factors.clear()

    def covariance(self) -> torch.Tensor:
        """(C, C), each class about its own mean."""
        means = torch.stack([member.total / member.n for member in self.members])
        counts = torch.tensor([float(member.n) for member in self.members], device=means.device)
        within: torch.Tensor = self.scatter - means.T @ (counts[:, None] * means)
        return within / counts.sum()

    def whiten(self, difference: torch.Tensor, shrink: float) -> torch.Tensor:
        """The inverse of the shrunk covariance times a vector (C,)."""
        if shrink not in self._factors:
            self._factors = {shrink: torch.linalg.cholesky(_shrunk(self.covariance(), shrink))}
        return torch.cholesky_solve(difference[:, None], self._factors[shrink])[:, 0]


@attrs.define(eq=False)
class Moments:
    """Count and mean of one class of feature vectors (n, C), with its covariance, or a share in one.

    shared None: the covariance is its own, all in float64 on the CPU. Else sums are float32 on the features' device,
    of deviations from the first rows' mean, so that nothing is lost between large means and small deviations.
    """

    shared: Shared | None = None
    n: int = 0
    total: Any = 0.0
    second: Any = 0.0
    reference: Any = 0.0
    sample: list[torch.Tensor] = attrs.field(factory=list)

    def add(self, x: torch.Tensor) -> None:
        """Add rows (n, C)."""
        if not len(x):
            return
        if self.shared is None:
            x = x.double().cpu()
            self.second = self.second + x.T @ x
        else:
            if not self.n:
                self.reference = x.mean(0)
                self.shared.members.append(self)
            x = x - self.reference
            self.shared.add(x)
            self._keep(x)
        self.n += len(x)
        self.total = self.total + x.sum(0)

    def _keep(self, x: torch.Tensor) -> None:
        count = min(PER_CALL, SAMPLED - sum(map(len, self.sample)), len(x))
        if count:
            self.sample.append(x[torch.arange(count, device=x.device) * len(x) // count].bfloat16())

    @property
    def mean(self) -> torch.Tensor:
        return self.reference + self.total / self.n  # type: ignore[no-any-return]

    @property
    def covariance(self) -> torch.Tensor:
        """(C, C), its own."""
        mean = self.mean
        return self.second / self.n - torch.outer(mean, mean)  # type: ignore[no-any-return]

    def variance(self, direction: torch.Tensor) -> torch.Tensor:
        """Of the rows' products with a direction; beside a shared covariance, of the kept rows'."""
        if self.shared is None:
            return direction @ self.covariance @ direction
        return (torch.cat(self.sample).float() @ direction).var(correction=0)


def moments_of(width: int, shared: Shared) -> Moments:
    """An empty class of that width."""
    return Moments() if width <= NARROW else Moments(shared)


def whitened_direction(unsafe: Moments, other: Moments, shrink: float = 0.1) -> tuple[torch.Tensor, float]:
    """Fisher's linear discriminant with a shrunk pooled covariance, scaled to unit deviation over the others.

    Returns:
        direction (C,) float32 on the CPU and offset, so that x . direction + offset has mean 0, deviation 1 over
        others (estimated from SAMPLED of them where the covariance is shared).
    """
    difference = unsafe.mean - other.mean
    if unsafe.shared is None:
        pooled = (unsafe.n * unsafe.covariance + other.n * other.covariance) / (unsafe.n + other.n)
        direction = torch.linalg.solve(_shrunk(pooled, shrink), difference)
    else:
        direction = unsafe.shared.whiten(difference, shrink)
    direction = direction / other.variance(direction).clamp_min(1e-12).sqrt()
    return direction.float().cpu(), -float(direction @ other.mean)


def _shrunk(covariance: torch.Tensor, shrink: float) -> torch.Tensor:
    scale = covariance.diagonal().mean().clamp_min(1e-12)
    return (1 - shrink) * covariance + shrink * scale * torch.eye(len(covariance)).to(covariance)
