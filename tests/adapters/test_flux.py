"""FLUX.1 and Kontext: what is read off the root's arguments."""

from __future__ import annotations

import pytest
import torch

from uvr_adapters import flux
from uvr_core.errors import AdapterMismatch


def arguments(*grids: tuple[int, int], dims: int = 2) -> dict[str, torch.Tensor]:
    """Position ids as the pipelines make them: (image number, row, column); references begin at any row."""
    parts = []
    for number, (height, width) in enumerate(grids):
        rows, columns = torch.meshgrid(torch.arange(height) + 3 * number, torch.arange(width), indexing="ij")
        parts.append(torch.stack([torch.full_like(rows, number), rows, columns], -1).reshape(-1, 3))
    ids = torch.cat(parts).float()
    return {"hidden_states": torch.empty(2, len(ids), 64), "img_ids": ids if dims == 2 else ids.expand(2, -1, -1)}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("references", [(), ((2, 5),), ((2, 5), (3, 3))])
def test_layout(references: tuple[tuple[int, int], ...], dims: int) -> None:
    layout = flux.layout(arguments((4, 6), *references, dims=dims))
    assert (layout.output, layout.grid, layout.references) == (24, (4, 6), references)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_picture_in_either_dtype(dtype: torch.dtype) -> None:
    given = arguments((128, 160))
    assert flux.layout({**given, "img_ids": given["img_ids"].to(dtype)}).grid == (128, 160)


RANDOM = torch.Generator().manual_seed(0)
NO_GRIDS = {
    "random": lambda ids: torch.randn(ids.shape, generator=RANDOM),
    "columns first": lambda ids: ids[:, [0, 2, 1]],
    "shuffled": lambda ids: ids[torch.randperm(len(ids), generator=RANDOM)],
    "the picture last": lambda ids: torch.cat([ids[24:], ids[:24]]),
    "a patch missing": lambda ids: ids[1:],
    "between the numbers": lambda ids: ids + torch.tensor([0.5, 0.0, 0.0]),
}


@pytest.mark.parametrize("what", NO_GRIDS)
def test_positions_that_are_no_grids_row_by_row_are_refused(what: str) -> None:
    """The first of the grids is taken for the picture, its patches row by row: else others would be regulated."""
    ids = NO_GRIDS[what](arguments((4, 6), (2, 5))["img_ids"])
    with pytest.raises(AdapterMismatch, match="no grids, row by row"):
        flux.layout({"img_ids": ids})


def test_the_time_argument_is_sigma() -> None:
    assert flux.sigma({"timestep": torch.tensor([0.75])}).tolist() == [0.75]


def test_a_probe_is_a_single_stream_block() -> None:
    assert set(flux.FLUX.probes) < set(flux.FLUX.attention)
