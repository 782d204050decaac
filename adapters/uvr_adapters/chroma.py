"""Chroma (Chroma1-Base, HD, Flash; img2img, inpaint): all that UVR knows about it.

Joint order: text, output; blocks as FLUX.1's. Padded text is masked, its first token aside. The time argument is
sigma = t / 1000. With guidance_scale > 1 two passes run, the conditional first, unnamed.
"""

from __future__ import annotations

from uvr_core.adapter import Adapter

from .arguments import of_ids, sigma, text

CHROMA = Adapter(
    name="chroma",
    model="ChromaTransformer2DModel",
    attention=("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
    layout=of_ids,
    time=sigma,
    text=text,
    guidance="two_pass",
    tokenizers=("tokenizer",),
    pipelines=("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
)
