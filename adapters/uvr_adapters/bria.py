"""Bria 3.2: all that UVR knows about it.

Wired as FLUX, ids included: text, output; double-stream blocks, then single-stream blocks. The time argument is t in
0..1000. Guidance runs in one batch, [unconditional, conditional].
"""

from __future__ import annotations

from uvr_core.adapter import Adapter

from .arguments import of_ids, sigma_of_thousand, text

BRIA = Adapter(
    name="bria",
    model="BriaTransformer2DModel",
    attention=("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
    layout=of_ids,
    time=sigma_of_thousand,
    text=text,
    image_at="end",
    guidance="batched:uc",
    pipelines=("BriaPipeline",),
)
