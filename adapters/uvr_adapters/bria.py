"""Bria 3.2: all that UVR knows about it.

Wired as FLUX, ids included: text, output; double-stream blocks, then single-stream blocks. The time argument is t in
0..1000. Guidance runs in one batch, [unconditional, conditional].
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments

from .flux import layout, text


def sigma(arguments: Arguments) -> torch.Tensor:
    return arguments["timestep"] / 1000


BRIA = Adapter(
    name="bria",
    model="BriaTransformer2DModel",
    attention=("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
    layout=layout,
    time=sigma,
    text=text,
    image_at="end",
    guidance="batched:uc",
    pipelines=("BriaPipeline",),
)
