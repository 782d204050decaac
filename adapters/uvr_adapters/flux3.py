"""FLUX.3: all that UVR knows about it.

Joint order: text, output, references, in the single-stream blocks; the blocks before them see one kind of token each.
References come as an argument of their own, `image_cond_hidden_states`. Ids are (t, row, column, l): rows and columns
are scaled, and l tells the output (0) from the references (-1, -2 ..). The time argument is sigma = t / 1000. Only
modular pipelines drive it; their guider says which forward follows the prompt.
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout

from .arguments import sigma, text


def _grids(ids: torch.Tensor) -> list[tuple[int, int]]:
    ids = ids[0] if ids.ndim == 3 else ids
    sizes = ids[:, 3].unique_consecutive(return_counts=True)[1].tolist()
    return [(len(part[:, 1].unique()), len(part[:, 2].unique())) for part in ids.split(sizes)]


def layout(arguments: Arguments) -> Layout:
    references = arguments.get("image_cond_ids")
    return Layout(_grids(arguments["img_ids"])[0], () if references is None else tuple(_grids(references)))


FLUX3 = Adapter(
    name="flux3",
    model="Flux3Transformer2DModel",
    attention=("single_transformer_blocks.*.attn",),
    layout=layout,
    time=sigma,
    text=text,
    guidance="two_pass",
)
