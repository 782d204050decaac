"""CogView4: all that UVR knows about it.

Joint order: text, output. One stream: each block's `attn1` projects text and image together. The model takes latents
(B, C, H, W) and cuts them into patches itself. Its time argument is t in 0..1000, before the resolution-dependent
shift that the pipeline gives the scheduler: sigma = t / 1000 falls from 1 to 0 with the noise, but is not the
scheduler's own sigma. With guidance_scale > 1 two passes run, named "cond" and "uncond". The control pipeline puts
its picture on the channels, so there are no reference tokens.
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout


def layout(arguments: Arguments) -> Layout:
    patch = arguments["self"].config.patch_size
    height, width = (side // patch for side in arguments["hidden_states"].shape[-2:])
    return Layout((height, width))


def sigma(arguments: Arguments) -> torch.Tensor:
    return arguments["timestep"] / 1000


COGVIEW4 = Adapter(
    name="cogview4",
    model="CogView4Transformer2DModel",
    attention=("transformer_blocks.*.attn1",),
    layout=layout,
    time=sigma,
    image_at="end",
    guidance="two_pass",
    pipelines=("CogView4Pipeline", "CogView4ControlPipeline"),
)
