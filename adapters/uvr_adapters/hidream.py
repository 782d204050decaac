"""HiDream-I1: all that UVR knows about it.

Joint order: output, its padding (of pictures that are not square, up to the model's largest), T5, Llama. The model
takes latents (B, C, H, W) and cuts them into patches itself, or patches and `img_sizes`; the argument `timesteps` is t
in 0..1000. Guidance runs in one batch, [unconditional, conditional].
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout, TextRoute


def layout(arguments: Arguments) -> Layout:
    model, states = arguments["self"], arguments["hidden_states"]
    if states.ndim == 3:
        height, width = (int(n) for n in arguments["img_sizes"][0])
        return Layout((height, width), padding=states.shape[1] - height * width)
    height, width = (side // model.config.patch_size for side in states.shape[-2:])
    return Layout((height, width), padding=model.max_seq - height * width if height != width else 0)


def sigma(arguments: Arguments) -> torch.Tensor:
    return arguments["timesteps"] / 1000


HIDREAM = Adapter(
    name="hidream",
    model="HiDreamImageTransformer2DModel",
    attention=("double_stream_blocks.*.block.attn1", "single_stream_blocks.*.block.attn1"),
    layout=layout,
    time=sigma,
    image_at="start",
    guidance="batched:uc",
    routes=(TextRoute("pooled text", "scales and shifts of every block, by a sum with the time", ("pooled_embeds",)),),
    pipelines=("HiDreamImagePipeline",),
)
