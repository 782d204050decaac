"""Lumina-Image 2: all that UVR knows about it.

The model's order, per sample: text, output, padding to the longest of the batch; the adapter's: text, padding, output,
the padding counting as text that no token sees. The model takes latents (B, C, H, W), which it cuts into patches
itself, and time turned round, 1 - t / 1000. With guidance_scale > 1 two passes run, the conditional first, unnamed.
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout

from .arguments import of_latents, sigma_turned


def layout(arguments: Arguments) -> Layout:
    plain, texts = of_latents(arguments), arguments["encoder_attention_mask"].sum(1).tolist()

    def order(tokens: int) -> torch.Tensor:
        each, output = torch.arange(tokens), plain.output
        return torch.stack([torch.cat([each[:n], each[n + output :], each[n : n + output]]) for n in texts])

    return Layout(plain.grid, order=order if len(set(texts)) > 1 else None)


def text(arguments: Arguments) -> int:
    return int(arguments["encoder_attention_mask"].sum(1).max())


LUMINA2 = Adapter(
    name="lumina2",
    model="Lumina2Transformer2DModel",
    attention=("layers.*.attn",),
    layout=layout,
    time=sigma_turned,
    text=text,
    image_at="end",
    guidance="two_pass",
    pipelines=("Lumina2Pipeline",),
)
