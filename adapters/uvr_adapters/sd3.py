"""Stable Diffusion 3 and 3.5: all that UVR knows about them.

Joint order: output, text. Every block is double-stream; the last gives no text output, but its queries include the
text. SD3.5's `attn2` sees the image alone and is no joint attention. The model takes latents (B, C, H, W), which it
cuts into patches itself, and t in 0..1000. Guidance runs in one batch, [unconditional, conditional]; skip-layer
guidance adds a pass that skips blocks, which the ledger refuses.
"""

from __future__ import annotations

from uvr_core.adapter import Adapter, TextRoute

from .arguments import of_latents, sigma_of_thousand, text

SD3 = Adapter(
    name="sd3",
    model="SD3Transformer2DModel",
    attention=("transformer_blocks.*.attn",),
    layout=of_latents,
    time=sigma_of_thousand,
    text=text,
    image_at="start",
    guidance="batched:uc",
    tokenizers=("tokenizer", "tokenizer_3"),
    routes=(TextRoute("pooled text", "CLIP's embeddings of the prompt modulate every block", ("pooled_projections",)),),
    pipelines=("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
)
