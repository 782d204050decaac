"""Stable Diffusion 3 and 3.5: all that UVR knows about them.

Joint order: output, text. Every block is double-stream; the last gives no text output, but its queries include the
text. SD3.5's `attn2` sees the image alone and is no joint attention. The model takes latents (B, C, H, W), which it
cuts into patches itself, and t in 0..1000. Guidance runs in one batch, [unconditional, conditional]; skip-layer
guidance adds a pass that skips blocks, which the ledger refuses.
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout, TextRoute


def layout(arguments: Arguments) -> Layout:
    patch = arguments["self"].config.patch_size
    height, width = (side // patch for side in arguments["hidden_states"].shape[-2:])
    return Layout((height, width))


def text(arguments: Arguments) -> int:
    return arguments["encoder_hidden_states"].shape[1]


def sigma(arguments: Arguments) -> torch.Tensor:
    return arguments["timestep"] / 1000


SD3 = Adapter(
    name="sd3",
    model="SD3Transformer2DModel",
    attention=("transformer_blocks.*.attn",),
    layout=layout,
    time=sigma,
    text=text,
    image_at="start",
    guidance="batched:uc",
    tokenizers=("tokenizer", "tokenizer_3"),
    routes=(TextRoute("pooled text", "CLIP's embeddings of the prompt modulate every block", ("pooled_projections",)),),
    pipelines=("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
)
