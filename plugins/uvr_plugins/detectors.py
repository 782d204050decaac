"""Built-in detectors: pure functions from tapped attention output to patch scores. See uvr_core.protocols.Detector."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from uvr_core import flow
from uvr_core.concepts import ConceptBank
from uvr_core.errors import UVRError


@attrs.frozen
class Anchor:
    """The paper's score: s(h, w) = mean over anchors of O(h, w) . o / C, C = heads * head_dim.

    UVR, arXiv 2606.06875, online localisation. Dividing by C averages, over heads, the per-head dot over head_dim.
    """

    name: str = "anchor"

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        return flow.patch_scores(features, bank.tensor("anchors", probe).to(features.device))


@attrs.frozen
class AnchorCosine:
    """Cosine between the attention output and the mean anchor, -1..1: the paper's score without the norms."""

    name: str = "anchor-cosine"

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        anchor = bank.tensor("anchors", probe).to(features.device).mean(0)
        return torch.nn.functional.cosine_similarity(features.float(), anchor.float(), dim=-1)


@attrs.frozen
class Contrast:
    """Whitened difference of means at this step's noise level: s = O . direction + offset.

    A score has mean 0 and deviation 1 over patches without the concept, at every noise level, so that one
    threshold serves a window of steps.
    """

    name: str = "contrast"

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        index = bank.bin_at(sigma)
        direction = bank.tensor("direction", probe)[index].to(features.device, torch.float32)
        return features.float() @ direction + float(bank.tensor("offset", probe)[index])


@attrs.frozen(eq=False)
class Oracle:
    """A mask that is given: +inf inside, -inf outside. For controls (true mask, random mask of equal area).

    Attributes:
        masks: (B, N) or (B, H, W) bool, one per image of the batch.
    """

    masks: Any = None
    name: str = "oracle"
    threshold: float = 0.0

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
