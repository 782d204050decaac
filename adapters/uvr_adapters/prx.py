"""PRX and PRX Pixel: all that UVR knows about them.

Keys: text, output; queries: the output alone, the text is never updated. The model takes latents or pixels
(B, C, H, W), which it cuts into patches itself, and one sigma = t / 1000 for each guidance part. Padded text is masked.
Guidance runs in one batch, [unconditional, conditional].
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments

from .arguments import of_latents, text


def sigma(arguments: Arguments) -> torch.Tensor:
    times = arguments["timestep"]
    return times.expand(len(arguments["hidden_states"])) if len(times) == 1 else times


PRX = Adapter(
    name="prx",
    model="PRXTransformer2DModel",
    attention=("blocks.*.attention",),
    layout=of_latents,
    time=sigma,
    text=text,
    image_at="end",
    text_output=False,
    guidance="batched:uc",
    pipelines=("PRXPipeline", "PRXPixelPipeline"),
)
