"""A direction taken out of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_shape, check_tokens


def projected_rows(out_rows: Tensor, vector: Tensor, offset: Tensor, strength: Tensor) -> Tensor:
    """Take a direction out of the rows that score positive on it.

    ``O' = O - strength * max(0, s) / |vector|^2 * vector`` with ``s = O . vector + offset``, O a row's heads
    side by side: a positive score becomes (1 - strength) s, another row stays bitwise what it is. Computed in
    float32.

    Args:
        out_rows: (B, H, R, D), attention output at R rows.
        vector: (C,), C = H * D; zero = no change.
        offset: (B, R), added to the score.
        strength: (B, R), >= 0, 1 = the score becomes 0; not checked.

    Returns:
        (B, H, R, D), dtype of ``out_rows``.

    Raises:
        ValueError: shapes disagree.
    """
    check_tokens("out_rows", out_rows)
    batch, heads, width, size = out_rows.shape
    check_shape("vector", vector, (heads * size,))
    check_shape("offset", offset, (batch, width))
    check_shape("strength", strength, (batch, width))
    wide = torch.promote_types(out_rows.dtype, torch.float32)
    rows, axis = out_rows.transpose(1, 2).flatten(2).to(wide), vector.to(wide)  # (B, R, C)
    score = (rows @ axis + offset.to(wide)).clamp(min=0)
    square = axis.square().sum()
    share = torch.where(square > 0, strength.to(wide) * score / square, 0.0)
    moved = torch.where(share[..., None] == 0, rows, rows - share[..., None] * axis)
    return moved.to(out_rows.dtype).reshape(batch, width, heads, size).transpose(1, 2)
