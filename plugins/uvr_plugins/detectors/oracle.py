"""oracle: a given mask."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import torch

from uvr_core.concepts import ConceptBank
from uvr_core.errors import UVRError

from .contrast import Contrast


@attrs.frozen(eq=False)
class Oracle:
    """A mask that is given: +inf inside, -inf outside, taken as it is. For controls (true mask, random patches).

    Attributes:
        masks: (B, N) or (B, H, W) bool, one per image of the batch.
    """

    masks: Any = None
    name: str = "oracle"
    threshold: float = 0.0
    exact: ClassVar[bool] = True

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        if self.masks is None:
            raise UVRError("the oracle detector needs its masks: detector=Oracle(masks)")
        mask = torch.as_tensor(self.masks, dtype=torch.bool).reshape(len(self.masks), -1)
        if mask.shape != features.shape[:2]:
            raise UVRError(
                f"oracle masks: expected {tuple(features.shape[:2])} (images, patches), got {tuple(mask.shape)}"
            )
        inside = torch.zeros(features.shape[:2], device=features.device)
        return inside.masked_fill(mask.to(features.device), torch.inf).masked_fill(
            ~mask.to(features.device), -torch.inf
        )

    def origin(
        self, features: torch.Tensor, core: torch.Tensor, sigma: float, bank: ConceptBank, probe: str
    ) -> torch.Tensor | None:
        """As Contrast tells it."""
        return Contrast().origin(features, core, sigma, bank, probe)
