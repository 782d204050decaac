"""head-max: the attention head that recognises the concept best decides."""

from __future__ import annotations

import attrs
import torch

from uvr_core import ConceptBank


@attrs.frozen
class HeadMax:
    """Largest cosine, over heads, between what sets a patch apart in its picture and the concept's direction.

        s(i) = max over h of cos(O_h(i) - mean over j of O_h(j), d_h(sigma))

    O_h is the attention output of head h, d_h(sigma) that head's part of the bank's direction (unsafe minus other
    patches) at the nearest noise level. The paper's score (UVR, arXiv 2606.06875, online localisation) averages plain
    products with an anchor over heads: a concept that few heads carry is diluted there by the others, and a head with
    large outputs outweighs the rest whatever it says. Here each head has a vote of at most 1, and the best one counts.

    Two prices. The maximum of noise grows with the number of heads, so that benign patches score well above 0:
    calibrate. And a concept that fills the picture is its mean, and does not stand out.
    """

    name: str = "head-max"

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        """(B, N, C) -> (B, N) float32, -1..1; near 0 where all patches are alike.

        C = heads * head_dim; of the 2C channels of an editing model the patch's own C are used.

        Raises:
            ConceptMismatch: the bank has no direction for this probe.
        """
        heads = (bank.fingerprint.heads, bank.fingerprint.head_dim)
        direction = bank.tensor("direction", probe)[bank.bin_at(sigma), : bank.width].to(features.device, torch.float32)
        outputs = features[..., : bank.width].float().unflatten(-1, heads)  # (B, N, heads, head_dim)
        apart = outputs - outputs.mean(1, keepdim=True)
        size = apart.norm(dim=-1).maximum(1e-3 * outputs.norm(dim=-1)).clamp(min=1e-12)  # rounding is no direction
        toward = torch.nn.functional.normalize(direction.unflatten(0, heads), dim=-1)
        return ((apart * toward).sum(-1) / size).amax(-1)
