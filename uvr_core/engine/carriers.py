"""Which tokens of the prompt carry a concept: told from the text alone, in the first step."""

from __future__ import annotations

import torch

from ..concepts import ConceptBank, TextCarriers
from ..intercept.calls import JointCall
from ..ops.upload import upload
from .readings import text_values


def check_text(bank: ConceptBank) -> None:
    """Raises ConceptMismatch: a bank that says how the text is told, without the tensors for it."""
    if bank.text is not None:
        for kind in ("text", "text_offset"):
            bank.tensor(kind, bank.text.probe)


def text_scores(call: JointCall, bank: ConceptBank, how: TextCarriers) -> torch.Tensor:
    """(B, T) float32: the log odds that a text token carries the concept. No host sync but for the upload.

    Args:
        call: of the block that `how` names.
    """
    vector, offset = (bank.tensor(kind, how.probe).to("cpu", torch.float32).numpy() for kind in ("text", "text_offset"))
    values = text_values(call)
    return values @ upload(vector[0], values.device) + float(offset[0])


def chosen_by(scores: torch.Tensor, how: TextCarriers, slack: float = 0.0) -> torch.Tensor:
    """(B, T) bool of scores (B, T): at most `slack` below the threshold, or near the best of a prompt in which none
    reaches it, and from these on along the text while scores stay at most `slack` below `how.grow`; at least one a
    prompt."""
    bar = (scores.amax(1, keepdim=True) - how.margin).clamp(max=how.threshold) - slack
    carrying = scores >= bar
    if how.grow is None:
        return carrying
    open_to = carrying | (scores >= how.grow - slack)
    runs = (~open_to).cumsum(1)  # the number of a token's run; a token that ends one has that of the next
    grown = torch.zeros(len(scores), scores.shape[1] + 1, device=scores.device).scatter_add_(1, runs, carrying.float())
    return open_to & (grown.gather(1, runs) > 0)
