"""Qwen-Image and Qwen-Image-Edit: what is read off the root's arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from uvr_adapters import qwen_image
from uvr_core.errors import AdapterMismatch


def layout(shapes: Any, tokens: int = 24) -> Any:
    return qwen_image.layout({"img_shapes": shapes, "hidden_states": torch.empty(2, tokens, 64)})


@pytest.mark.parametrize(
    ("shapes", "references"),
    [
        ([[(1, 4, 6)], [(1, 4, 6)]], ()),
        ([(1, 4, 6), (1, 4, 6)], ()),  # as the ControlNet pipelines give it
        ([[(1, 4, 6), (1, 2, 5), (1, 3, 3)]] * 2, ((2, 5), (3, 3))),
    ],
)
def test_layout(shapes: Any, references: tuple[tuple[int, int], ...]) -> None:
    read = layout(shapes, 24 + sum(height * width for height, width in references))
    assert (read.output, read.grid, read.references) == (24, (4, 6), references)


def test_pictures_of_different_sizes_are_refused() -> None:
    with pytest.raises(AdapterMismatch, match="different sizes"):
        layout([[(1, 4, 6)], [(1, 6, 4)]])


@pytest.mark.parametrize("shapes", [[[(2, 4, 6)]], [[(1, 4, 6), (3, 2, 2)]]])
def test_frames_are_refused(shapes: Any) -> None:
    with pytest.raises(AdapterMismatch, match="several frames"):
        layout(shapes)
