"""What several families read off their forward's arguments in the same way, and that each adapter stays short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import uvr_adapters
from uvr_adapters import arguments as reading
from uvr_core.adapter import Arguments, Layout
from uvr_core.errors import AdapterMismatch


def with_ids(*grids: tuple[int, int], dims: int = 2) -> dict[str, torch.Tensor]:
    """Position ids as the pipelines make them: (image number, row, column); references begin at any row."""
    parts = []
    for number, (height, width) in enumerate(grids):
        rows, columns = torch.meshgrid(torch.arange(height) + 3 * number, torch.arange(width), indexing="ij")
        parts.append(torch.stack([torch.full_like(rows, number), rows, columns], -1).reshape(-1, 3))
    ids = torch.cat(parts).float()
    return {"hidden_states": torch.empty(2, len(ids), 64), "img_ids": ids if dims == 2 else ids.expand(2, -1, -1)}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("references", [(), ((2, 5),), ((2, 5), (3, 3))])
def test_ids_are_grids(references: tuple[tuple[int, int], ...], dims: int) -> None:
    layout = reading.of_ids(with_ids((4, 6), *references, dims=dims))
    assert (layout.output, layout.grid, layout.references) == (24, (4, 6), references)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_picture_in_either_dtype(dtype: torch.dtype) -> None:
    given = with_ids((128, 160))
    assert reading.of_ids({**given, "img_ids": given["img_ids"].to(dtype)}).grid == (128, 160)


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
    ids = NO_GRIDS[what](with_ids((4, 6), (2, 5))["img_ids"])
    with pytest.raises(AdapterMismatch, match="no grids, row by row"):
        reading.of_ids({"img_ids": ids})


@pytest.mark.parametrize(
    ("read", "time"), [(reading.sigma, 0.75), (reading.sigma_of_thousand, 750.0), (reading.sigma_turned, 0.25)]
)
def test_the_noise_level(read: Callable[[Arguments], torch.Tensor], time: float) -> None:
    assert read({"timestep": torch.tensor([time])}).tolist() == [0.75]


def test_latents_are_cut_into_patches() -> None:
    model = SimpleNamespace(config=SimpleNamespace(patch_size=2))
    layout = reading.of_latents({"self": model, "hidden_states": torch.empty(2, 16, 8, 12)})
    assert (layout.image, layout.output, layout.grid, layout.references) == (24, 24, (4, 6), ())


def test_references_out_of_a_cache_are_brought_to_the_end() -> None:
    """Keys: 3 of text, 2 references, 4 patches; the queries are without the references."""
    given = {"encoder_hidden_states": torch.empty(2, 3, 8), "hidden_states": torch.empty(2, 4, 8)}
    layout = reading.with_cached(given, (2, 2), 2, start=3)
    assert (layout.grid, layout.references) == ((2, 2), ((1, 2),))
    assert layout.order is not None
    assert layout.order(9).tolist() == [[0, 1, 2, 5, 6, 7, 8, 3, 4]] * 2
    assert layout.order(7).tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 2


def test_an_order_keeps_the_rest_of_the_layout() -> None:
    layout = reading.first_last(Layout((2, 2), ((1, 2),), padding=1), 4, batch=1)
    assert (layout.grid, layout.references, layout.padding) == ((2, 2), ((1, 2),), 1)
    assert layout.order is not None
    assert layout.order(6).tolist() == [[4, 5, 0, 1, 2, 3]]


def test_what_all_samples_have_in_common() -> None:
    assert reading.of_all_samples("x", [((4, 6), (2, 2))] * 3) == ((4, 6), (2, 2))
    with pytest.raises(AdapterMismatch, match=r"x: the images of one batch .* \[\(4, 6\), \(6, 4\)\]: draw them"):
        reading.of_all_samples("x", [(6, 4), (4, 6)])


def test_every_adapter_is_at_most_45_lines() -> None:
    beside = ("__init__", "arguments", "unfit")
    files = [path for path in Path(uvr_adapters.__file__).parent.glob("*.py") if path.stem not in beside]
    assert len(files) == len(uvr_adapters.uvr_adapters())
    assert [path.name for path in files if path.read_text().count("\n") > 45] == []
