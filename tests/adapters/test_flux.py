"""FLUX.1 and Kontext: what is read off the root's arguments."""

from __future__ import annotations

import pytest
import torch

from uvr_adapters import flux


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


def test_the_time_argument_is_sigma() -> None:
    assert flux.sigma({"timestep": torch.tensor([0.75])}).tolist() == [0.75]


def test_a_probe_is_a_single_stream_block() -> None:
    assert set(flux.FLUX.probes) < set(flux.FLUX.attention)
