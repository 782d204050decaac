"""Patch scores gathered over the steps of a run."""

from __future__ import annotations

import attrs
import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]

_SHARED = 0.2  # correlation between steps for which `Evidence` allows; docs/design/measurements.md


@attrs.define(eq=False)
class Evidence:
    """Patch scores gathered over steps: a sum with weights w_s = m^(t-s), s = 0..t, over its deviation.

        E_t = sum_s w_s S_s / sqrt((1 - r) sum_s w_s^2 + r (sum_s w_s)^2),   r = 0.2

    The divisor is the sum's deviation where every S_s has deviation 1 and any two of them correlate by r. What a patch
    shows in step after step rises above it, and a strong score in the first step counts at once.

    Attributes:
        memory: m in 0..1. 0: every step stands alone, bitwise; 1: all steps count alike.
    """

    memory: float = 0.0
    _total: Scores | None = attrs.field(default=None, init=False)
    _weights: float = attrs.field(default=0.0, init=False)
    _squares: float = attrs.field(default=0.0, init=False)

    def add(self, scores: Scores) -> Scores:
        """The evidence after one more step, of the shape of `scores` (..., N)."""
        if not self.memory:
            return scores
        self._total = scores if self._total is None else scores + np.float32(self.memory) * self._total
        self._weights = 1 + self.memory * self._weights
        self._squares = 1 + self.memory**2 * self._squares
        deviation = np.sqrt((1 - _SHARED) * self._squares + _SHARED * self._weights**2)
        gathered: Scores = self._total / np.float32(deviation)
        return gathered

    @classmethod
    def over(cls, scores: Scores, memory: float) -> Scores:
        """The evidence after each step of scores (images, steps, N)."""
        if not memory:
            return scores
        evidence = cls(memory)
        return np.stack([evidence.add(scores[:, step]) for step in range(scores.shape[1])], 1)
