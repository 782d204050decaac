"""concept-token: likeness to the text tokens that feed the concept."""

from __future__ import annotations

import attrs
import torch

from uvr_core.concepts import ConceptBank
from uvr_core.errors import ConceptMismatch


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
