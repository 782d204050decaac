"""Ovis-Image: all that UVR knows about it.

Wired as FLUX, ids included: text, output; double-stream blocks, then single-stream blocks. The time argument is
sigma = t / 1000. With guidance_scale > 1 two passes run, named "cond" and "uncond".
"""

from __future__ import annotations

from uvr_core.adapter import Adapter

from .arguments import of_ids, sigma, text

OVIS_IMAGE = Adapter(
    name="ovis-image",
    model="OvisImageTransformer2DModel",
    attention=("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
    layout=of_ids,
    time=sigma,
    text=text,
    image_at="end",
    guidance="two_pass",
    pipelines=("OvisImagePipeline",),
)
