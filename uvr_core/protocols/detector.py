"""What a detector is: a small object whose one method is a pure function of tensors."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from ..concepts import ConceptBank


@runtime_checkable
class Detector(Protocol):
    """Tapped attention output -> one score per output patch.

    Optional attributes: `threshold` (tau, for scores that need no calibration), `exact` (true: the scores are a mask
    that is given, and its patches are taken as they are, with no closing, filling or choice of components).
    """

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        """Score patches.

        Args:
            features: (B, N, C) float32, attention output of the probe block at the output patches, heads
                concatenated (C = heads * head_dim), before the output projection. Where there are reference tokens
                (B, N, 2C): the second half is the attention output at the reference token that faces the patch, by
                nearest place, averaged over reference images.
            sigma: noise level of this step, 1 = pure noise.
            bank: the concept.
            probe: path of the probe block.

        Returns:
            (B, N) float32, larger = more of the concept. Each sample's scores depend on that sample alone.
        """
        ...


@runtime_checkable
class TellsOrigin(Protocol):
    """A detector that also tells whether the source image shows what it located, or the instruction brings it."""

    def origin(
        self, features: torch.Tensor, core: torch.Tensor, sigma: float, bank: ConceptBank, probe: str
    ) -> torch.Tensor | None:
        """Tell where a concept comes from.

        Args:
            features: (B, N, 2C) as `scores` gets them.
            core: (B, N) bool, located patches.

        Returns:
            (B,) float32, > 0 where the source shows it (of no meaning where nothing is located), or None: the bank
            cannot tell.
        """
        ...
