"""contrast: the whitened difference of means."""

from __future__ import annotations

import attrs
import torch

from uvr_core.concepts import ConceptBank


@attrs.frozen
class Contrast:
    """Whitened difference of means at this step's noise level: s = O . direction + offset.

    A score has mean 0 and deviation 1 over patches without the concept, at every noise level, so that one
    threshold serves a window of steps. In an editing model O is that of the patch and of the reference token facing it.
    """

    name: str = "contrast"

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        index = bank.bin_at(sigma)
        direction = bank.tensor("direction", probe)[index].to(features.device, torch.float32)
        if len(direction) > features.shape[-1]:
            raise bank.without_sources()
        return features[..., : len(direction)].float() @ direction + float(bank.tensor("offset", probe)[index])

    def origin(
        self, features: torch.Tensor, core: torch.Tensor, sigma: float, bank: ConceptBank, probe: str
    ) -> torch.Tensor | None:
        """Mean over the core of O . w + b, the whitened difference of concepts from the source and from words."""
        if f"origin/{probe}" not in bank.tensors:
            return None
        index = bank.bin_at(sigma)
        weight = core.float() / core.sum(-1, keepdim=True).clamp_min(1)
        mean = (features.float() * weight[..., None]).sum(1)
        direction = bank.tensor("origin", probe)[index].to(features.device, torch.float32)
        return mean @ direction + float(bank.tensor("origin_offset", probe)[index])
