"""What several families read off their forward's arguments in the same way: text, noise level, patches, orders."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import attrs
import torch

from uvr_core.adapter import Arguments, Layout
from uvr_core.errors import AdapterMismatch


def text(arguments: Arguments) -> int:
    """Text tokens of `encoder_hidden_states` (B, T, C)."""
    return arguments["encoder_hidden_states"].shape[1]


def sigma(arguments: Arguments) -> torch.Tensor:
    """A time argument (B,) that is the noise level: t / 1000."""
    return arguments["timestep"]


def sigma_of_thousand(arguments: Arguments) -> torch.Tensor:
    """A time argument (B,) in 0..1000."""
    return arguments["timestep"] / 1000


def sigma_turned(arguments: Arguments) -> torch.Tensor:
    """A time argument (B,) that is turned round: 1 - t / 1000."""
    return 1 - arguments["timestep"]


def of_latents(arguments: Arguments) -> Layout:
    """Latents (B, C, H, W) that the model cuts into patches itself, `patch_size` on a side."""
    return Layout(grid_of(arguments["hidden_states"], arguments["self"].config.patch_size))


def grid_of(latents: torch.Tensor, patch: int) -> tuple[int, int]:
    """(H, W) in patches of latents (..., height, width)."""
    height, width = latents.shape[-2:]
    return height // patch, width // patch


def of_ids(arguments: Arguments) -> Layout:
    """`img_ids` (I, 3 or more), or the same for each sample: number of the picture, row, column; the output first.

    Raises:
        AdapterMismatch: the pictures' numbers do not grow, or their positions are no grids, row by row.
    """
    ids = arguments["img_ids"].cpu()  # one host sync, not one for each number
    ids = ids[0] if ids.ndim == 3 else ids
    numbers, counts = ids[:, 0].unique_consecutive(return_counts=True)
    images = ids.split(counts.tolist())
    grids = [tuple(int(n) for n in (part[:, 1:3].amax(0) - part[:, 1:3].amin(0) + 1).tolist()) for part in images]
    numbered = torch.equal(numbers, numbers.round()) and bool((numbers.diff() > 0).all())
    if not numbered or not all(map(_row_major, images, grids)):
        raise AdapterMismatch(
            f"img_ids of {len(ids)} tokens are no grids, row by row: the first of {len(images)} images has "
            f"{[len(part) for part in images[:4]]} patches and spans {grids[:4]}"
        )
    return Layout(grids[0], tuple(grids[1:]))


def _row_major(part: torch.Tensor, grid: tuple[int, int]) -> bool:
    """Whether positions (N, 3 or more) are those of a grid, row by row."""
    height, width = grid
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(part.dtype)
    return height * width == len(part) and torch.equal(part[:, 1:3] - part[:, 1:3].amin(0), places)


def with_cached(arguments: Arguments, grid: tuple[int, int], count: int, start: int = 0) -> Layout:
    """Text and output beside references whose keys come out of a cache.

    The cache knows their number alone: a row of so many patches. An axis that has them has them from token `start` on;
    they are brought to its end.
    """
    layout, both = Layout(grid, ((1, count),)), text(arguments) + grid[0] * grid[1]
    return first_last(layout, count, len(arguments["hidden_states"]), start, over=both)


def first_last(layout: Layout, count: int, batch: int, start: int = 0, over: int = 0) -> Layout:
    """The layout where an axis of more than `over` tokens has `count` from `start` on that belong at its end."""

    def order(tokens: int) -> torch.Tensor:
        index = torch.arange(tokens)
        if tokens > over:
            index[start:] = index[start:].roll(-count)
        return index.expand(batch, -1)

    return attrs.evolve(layout, order=order)


def of_all_samples(family: str, sizes: Iterable[Hashable]) -> Any:
    """What the samples of a batch have in common: `sizes` holds one value for each.

    Raises:
        AdapterMismatch: they differ.
    """
    each = set(sizes)
    if len(each) > 1:
        raise AdapterMismatch(
            f"{family}: the images of one batch have different sizes: {sorted(each)}: draw them one by one"  # type: ignore[type-var]
        )
    return each.pop()
