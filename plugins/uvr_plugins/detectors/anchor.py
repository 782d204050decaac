"""anchor, anchor-cosine: the paper's score, with and without the norms."""

from __future__ import annotations

import attrs
import torch

from uvr_core.concepts import ConceptBank
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
