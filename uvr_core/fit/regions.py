"""Where the concept is in a picture: a user's masks, or what a judge says, brought to the patch grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import UVRError
from ..ops.masks import Mask

MaskSource = Callable[[Sequence[Any], tuple[int, int]], Any]


def mask_of(masks: MaskSource | Any, images: Sequence[Any], grid: tuple[int, int], first: int) -> Mask:
    """The masks of one batch, (B, H, W) bool.

    Args:
        masks: a callable (images, (H, W)) -> (B, H, W) or (B, H * W), or an array with one entry per image of the set.
        first: place of the batch's first image in the set.

    Raises:
        UVRError: another shape.
    """
    batch = masks(images, grid) if callable(masks) else masks[first : first + len(images)]
    array = np.asarray(batch, dtype=bool)
    if array.shape not in ((len(images), *grid), (len(images), grid[0] * grid[1])):
        raise UVRError(
            f"masks: expected {(len(images), *grid)} (images, rows, columns of patches) for images {first} to "
            f"{first + len(images) - 1}, got {array.shape}"
        )
    return array.reshape(len(images), *grid)


def shown_by(
    masks: MaskSource | Any, sources: Sequence[Any] | None, first: int, count: int, grid: tuple[int, int]
) -> Mask | None:
    """(count,) bool, whether each source image of a batch shows the concept; None: no sources, or nobody to ask."""
    if sources is None or not callable(masks):
        return None
    return np.asarray(mask_of(masks, list(sources[first : first + count]), grid, first).any((1, 2)), dtype=bool)
