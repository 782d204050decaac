"""Attention masks as ``F.scaled_dot_product_attention`` takes them, in 4 dimensions, gathered at rows or keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import described


def as_4d(attn_mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """View a mask of 2 to 4 dimensions as 4; sizes stay 1 where they broadcast.

    Raises:
        ValueError: it does not broadcast to (B, H, Sq, Sk), or is neither boolean nor floating.
    """
    full = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    mask = attn_mask[(None,) * (4 - attn_mask.dim())] if 2 <= attn_mask.dim() <= 4 else attn_mask
    if mask.dim() != 4 or any(m not in (1, n) for m, n in zip(mask.shape, full, strict=True)):
        raise ValueError(f"attn_mask: expected 2 to 4 dimensions broadcasting to {full}, got {described(attn_mask)}")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"attn_mask: expected bool or floating, got {described(attn_mask)}")
    return mask


def mask_rows(mask: Tensor, index: Tensor) -> Tensor:
    """Gather a 4-dimensional mask at query rows ``index`` (B, R); a query axis of size 1 stays."""
    if mask.shape[2] == 1:
        return mask
    batch, width = index.shape
    rows = index[:, None, :, None].expand(-1, mask.shape[1], width, mask.shape[3])
    return mask.expand(batch, -1, -1, -1).gather(2, rows)


def mask_keys(mask: Tensor, index: Tensor) -> Tensor:
    """Gather a 4-dimensional mask at keys ``index`` (B, T); a key axis of size 1 stays."""
    if mask.shape[3] == 1:
        return mask
    keys = index[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1)
    return mask.expand(len(index), -1, -1, -1).gather(3, keys)


def additive(mask: Tensor) -> Tensor:
    """A float mask as it is, a boolean one as 0 and minus infinity."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_fill(~mask, -math.inf)
