"""Patches of two grids that lie at the same place."""

from __future__ import annotations

import torch
from torch.nn.functional import avg_pool2d


def nearest(of: tuple[int, int], among: tuple[int, int]) -> torch.Tensor:
    """For every patch of one grid the index of the patch of another grid at the same place.

    Args:
        of: (h, w).
        among: (H, W).

    Returns:
        (h * w,) int64 in 0..H*W-1, row-major as both grids.
    """
    rows, columns = (
        torch.div((2 * torch.arange(n) + 1) * m, 2 * n, rounding_mode="floor") for n, m in zip(of, among, strict=True)
    )
    return (rows[:, None] * among[1] + columns).reshape(-1)


def around(patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(B, H*W, C) -> the same: the mean over the patches of the 3x3 neighbourhood that lie on the grid (H, W)."""
    spread = patches.transpose(1, 2).unflatten(2, grid)  # (B, C, H, W)
    return avg_pool2d(spread, 3, 1, 1, count_include_pad=False).flatten(2).transpose(1, 2)


def facing(patches: torch.Tensor, grid: tuple[int, int], other: tuple[int, int]) -> torch.Tensor:
    """(B, H*W, ...) values of the patches of `grid` -> (B, h*w, ...), seen from those of the `other`."""
    return patches[:, nearest(other, grid).to(patches.device)]
