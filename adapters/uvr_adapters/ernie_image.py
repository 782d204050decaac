"""ERNIE-Image: all that UVR knows about it.

Joint order: output, text, in one stream; padded text is masked. The model takes latents (B, C, H, W), already cut into
patches. The time argument is t in 0..1000. Guidance runs in one batch, [unconditional, conditional].
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


def text(arguments: Arguments) -> int:
    return arguments["text_bth"].shape[1]


ERNIE_IMAGE = Adapter(
    name="ernie-image",
    model="ErnieImageTransformer2DModel",
    attention=("layers.*.self_attention",),
    layout=layout,
    time=sigma,
    text=text,
    image_at="start",
    guidance="batched:uc",
    tokenizers=("tokenizer",),
    pipelines=("ErnieImagePipeline",),
)
