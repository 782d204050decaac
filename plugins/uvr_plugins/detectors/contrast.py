"""Built-in detectors: pure functions from tapped attention output to patch scores. See uvr_core.protocols.Detector."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import torch

from uvr_core.concepts import ConceptBank
from uvr_core.errors import ConceptMismatch, UVRError
from uvr_core.ops.mass import patch_scores


@attrs.frozen
class Anchor:
    """The paper's score: s(h, w) = mean over anchors of O(h, w) . o / C, C = heads * head_dim.

    UVR, arXiv 2606.06875, online localisation. Dividing by C averages, over heads, the per-head dot over head_dim.
    """

    name: str = "anchor"

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        return patch_scores(features[..., : bank.width], bank.tensor("anchors", probe).to(features.device))


@attrs.frozen
class AnchorCosine:
    """Cosine between the attention output and the mean anchor, -1..1: the paper's score without the norms."""

    name: str = "anchor-cosine"

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        anchor = bank.tensor("anchors", probe).to(features.device).mean(0)
        return torch.nn.functional.cosine_similarity(features[..., : bank.width].float(), anchor.float(), dim=-1)


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


@attrs.frozen
class ConceptToken:
    """How much more a patch's attention output resembles that of the concept's text tokens than the picture's does.

        s(i) = cos(O(i), token) - mean over the picture's N patches of cos(O(n), token),   -2..2

    `token` is the bank's mean attention output, at this noise level, of the text tokens that feed the concept. The
    idea is ConceptAttention's (Helbling et al. 2025, arXiv 2502.04320): in attention-output space, output patches lie
    near the text tokens of what they show. There the tokens are extra ones in the running prompt; here they are
    collected beforehand, so that a prompt needs not name the concept. The mean is the sample's own.
    """

    name: str = "concept-token"

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        if f"token/{probe}" not in bank.tensors:
            raise ConceptMismatch(
                f"concept {bank.name!r} has no text token for probe {probe!r}, which detector 'concept-token' needs; "
                "collect it again (uvr collect), or take another detector"
            )
        token = bank.tensor("token", probe)[bank.bin_at(sigma)].to(features.device, torch.float32)
        cosine = torch.nn.functional.cosine_similarity(features[..., : bank.width].float(), token, dim=-1)
        return cosine - cosine.mean(-1, keepdim=True)


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
