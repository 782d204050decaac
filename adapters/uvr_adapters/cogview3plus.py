"""CogView3-Plus: all that UVR knows about it.

Joint order: text, output. One stream: each block's `attn1` projects both together. The model takes latents
(B, C, H, W), which it cuts into patches itself, and the scheduler's t in 0..1000: t / 1000 falls with the noise, but is
no flow's sigma. Guidance runs in one batch, [unconditional, conditional].
"""

from __future__ import annotations

from uvr_core.adapter import Adapter

from .arguments import of_latents, sigma_of_thousand, text

COGVIEW3PLUS = Adapter(
    name="cogview3plus",
    model="CogView3PlusTransformer2DModel",
    attention=("transformer_blocks.*.attn1",),
    layout=of_latents,
    time=sigma_of_thousand,
    text=text,
    image_at="end",
    guidance="batched:uc",
    pipelines=("CogView3PlusPipeline",),
)
