"""A linear classifier: the log odds of two classes of feature vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import UVRError

_STEPS = 200


def log_odds(
    positive: torch.Tensor, negatives: Sequence[torch.Tensor], weight_decay: float = 0.1
) -> tuple[torch.Tensor, float]:
    """Logistic regression on standardised features, classes of equal weight, with an L2 penalty.

    Args:
        positive: (n, C).
        negatives: sets of (m, C) that weigh alike together, however many rows each has; empty ones are left out.
        weight_decay: of the squared length of the standardised vector.

    Returns:
        (C,) float32 vector w and offset b: the log odds of x are x . w + b.

    Raises:
        UVRError: a class is empty, or features are not finite.
    """
    sets = [rows for rows in negatives if len(rows)]
    if not len(positive) or not sets:
        raise UVRError(f"expected rows of both classes, got {len(positive)} and {sum(map(len, sets))}")
    with torch.enable_grad(), torch.inference_mode(False):  # tensors made here may be differentiated through
        rows = torch.cat([positive, *sets]).double().cpu()
        if not bool(torch.isfinite(rows).all()):
            raise UVRError("features hold NaN or Inf; the run is broken (overflow in half precision?)")
        mean, deviation = rows.mean(0), rows.std(0).clamp(min=1e-6)
        shares = [1 / len(positive)] * len(positive) + [1 / len(sets) / len(x) for x in sets for _ in range(len(x))]
        weight = torch.tensor(shares, dtype=torch.float64)
        label = (torch.arange(len(rows)) < len(positive)).double()
        scaled = (rows - mean) / deviation
        vector = torch.zeros(rows.shape[1] + 1, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([vector], max_iter=_STEPS, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            logits = scaled @ vector[:-1] + vector[-1]
            each = torch.nn.functional.binary_cross_entropy_with_logits(logits, label, weight, reduction="sum")
            total = each + weight_decay * vector[:-1].square().sum()
            total.backward()
            return total

        optimiser.step(loss)
    vector = vector.detach()
    direction = vector[:-1] / deviation
    return direction.float(), float(vector[-1] - mean @ direction)


def log_odds_among_likes(positive: torch.Tensor, negatives: Sequence[torch.Tensor]) -> tuple[torch.Tensor, float]:
    """`log_odds`, fitted again with the negatives that are most like the positives as one set more.

    Of a prompt's tokens most are grammar, which any vector tells apart; other things' names are few and close. So of
    each set as many of the highest scores as there are positives weigh as much as the whole set.

    Args, returns and errors as of `log_odds`.
    """
    vector, offset = log_odds(positive, negatives)
    scores = [rows.float() @ vector.to(rows.device) + offset for rows in negatives]
    likes = [
        rows[told.topk(min(len(positive), len(rows))).indices] for rows, told in zip(negatives, scores, strict=True)
    ]
    return log_odds(positive, [*negatives, torch.cat(likes)])
