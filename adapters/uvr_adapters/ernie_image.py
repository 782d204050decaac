"""ERNIE-Image: all that UVR knows about it.

Joint order: output, text, in one stream; padded text is masked. The model takes latents (B, C, H, W), already cut into
patches. The time argument is t in 0..1000. Guidance runs in one batch, [unconditional, conditional].
"""

from __future__ import annotations

from uvr_core.adapter import Adapter, Arguments

from .arguments import of_latents, sigma_of_thousand


def text(arguments: Arguments) -> int:
    return arguments["text_bth"].shape[1]


ERNIE_IMAGE = Adapter(
    name="ernie-image",
    model="ErnieImageTransformer2DModel",
    attention=("layers.*.self_attention",),
    layout=of_latents,
    time=sigma_of_thousand,
    text=text,
    image_at="start",
    guidance="batched:uc",
    tokenizers=("tokenizer",),
    pipelines=("ErnieImagePipeline",),
)
