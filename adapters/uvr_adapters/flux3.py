"""FLUX.3: all that UVR knows about it.

Joint order: text, output, references, in the single-stream blocks; the blocks before them see one kind of token each.
References come as an argument of their own, `image_cond_hidden_states`, with ids (t, row, column, l). The time argument
is sigma = t / 1000. Only a modular pipeline drives it: attach to its transformer.
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout


def _grids(ids: torch.Tensor) -> list[tuple[int, int]]:
    images = [ids[ids[:, 0] == number] for number in ids[:, 0].unique()]
    return [tuple((part[:, 1:3].amax(0) - part[:, 1:3].amin(0) + 1).int().tolist()) for part in images]


def layout(arguments: Arguments) -> Layout:
    references = arguments.get("image_cond_ids")
    return Layout(_grids(arguments["img_ids"])[0], () if references is None else tuple(_grids(references)))


def sigma(arguments: Arguments) -> torch.Tensor:
    return arguments["timestep"]


def text(arguments: Arguments) -> int:
    return arguments["encoder_hidden_states"].shape[1]


FLUX3 = Adapter(
    name="flux3",
    model="Flux3Transformer2DModel",
    attention=("single_transformer_blocks.*.attn",),
    layout=layout,
    time=sigma,
    text=text,
    guidance="two_pass",
)
