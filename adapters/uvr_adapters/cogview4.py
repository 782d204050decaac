"""CogView4 and its control pipeline: all that UVR knows about them.

Joint order: text, output. One stream: each block's `attn1` projects both together. The model takes latents
(B, C, H, W), which it cuts into patches itself; the control picture lies on the channels. Its t in 0..1000 is the one
before the scheduler's resolution-dependent shift: t / 1000 falls from 1 to 0 with the noise, but is not the scheduler's
sigma. With guidance_scale > 1 two passes run, the conditional first; CogView4Pipeline names them, the control pipeline
does not.
"""

from __future__ import annotations

from uvr_core.adapter import Adapter

from .arguments import of_latents, sigma_of_thousand, text

COGVIEW4 = Adapter(
    name="cogview4",
    model="CogView4Transformer2DModel",
    attention=("transformer_blocks.*.attn1",),
    layout=of_latents,
    time=sigma_of_thousand,
    text=text,
    image_at="end",
    guidance="two_pass",
    pipelines=("CogView4Pipeline", "CogView4ControlPipeline"),
)
