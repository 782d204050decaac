"""LongCat-Image and LongCat-Image-Edit: all that UVR knows about them.

Joint order: text, output, source; blocks as FLUX.1's. `img_ids` is (I, 3): column 0 tells the output (1) from the
source (2), columns 1 and 2 are row and column, counted on from the text. The time argument is sigma = t / 1000. With
guidance_scale > 1 two passes run, named "cond" and "uncond".
"""

from __future__ import annotations

from uvr_core.adapter import Adapter

from .arguments import of_ids, sigma, text

LONGCAT_IMAGE = Adapter(
    name="longcat-image",
    model="LongCatImageTransformer2DModel",
    attention=("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
    layout=of_ids,
    time=sigma,
    text=text,
    guidance="two_pass",
    pipelines=("LongCatImagePipeline", "LongCatImageEditPipeline"),
)
