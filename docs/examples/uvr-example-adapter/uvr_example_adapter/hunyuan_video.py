"""HunyuanVideo, drawing single frames: all that UVR knows about it.

Joint order: output, text; padded text is masked. Two-stream blocks first, then one-stream blocks. The model takes
latents (B, C, frames, H, W) and cuts them into patches itself; a video of several frames is refused, for UVR locates in
pictures. Its time argument is t = 1000 sigma. With true_cfg_scale > 1 and a negative prompt two passes run, named
"cond" and "uncond".
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout, TextRoute
from uvr_core.errors import AdapterMismatch


def layout(arguments: Arguments) -> Layout:
    frames, height, width = arguments["hidden_states"].shape[-3:]
    if frames != 1:
        raise AdapterMismatch(f"hunyuan-video: expected a picture, got {frames} frames: pass num_frames=1")
    patch = arguments["self"].config.patch_size
    return Layout((height // patch, width // patch))


def text(arguments: Arguments) -> int:
    return arguments["encoder_hidden_states"].shape[1]


def sigma(arguments: Arguments) -> torch.Tensor:
    return arguments["timestep"] / 1000


HUNYUAN_VIDEO = Adapter(
    name="hunyuan-video",
    model="HunyuanVideoTransformer3DModel",
    attention=("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
    layout=layout,
    time=sigma,
    text=text,
    image_at="start",
    guidance="two_pass",
    routes=(TextRoute("pooled text", "CLIP's embedding of the prompt modulates every block", ("pooled_projections",)),),
    pipelines=("HunyuanVideoPipeline",),
)
