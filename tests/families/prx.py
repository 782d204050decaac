"""PRX in latents and in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from .family import Drawing, Family, Release, Size, assembled, by_text, padded, scheduler

WIDTH = 12
CONFIG = {
    "in_channels": 4, "patch_size": 2, "context_in_dim": WIDTH, "hidden_size": 32, "num_heads": 2, "depth": 2,
    "axes_dim": [8, 8],
}  # fmt: skip
PIXEL = {"in_channels": 3, "patch_size": 16, "bottleneck_size": 16, "resolution_embeds": True}
# Photoroom/prxpixel-t2i, transformer/config.json
PRX_PIXEL = PIXEL | {
    "context_in_dim": 2048, "hidden_size": 3584, "num_heads": 28, "depth": 24, "axes_dim": [64, 64],
    "bottleneck_size": 768,
}  # fmt: skip


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As the pipelines, without padding."""
    side = config.get("patch_size", 2)
    return {
        "hidden_states": torch.randn(batch, config.get("in_channels", 16), side * height, side * width),
        "timestep": torch.full((batch,), sigma),
        "encoder_hidden_states": torch.randn(batch, 5, config.get("context_in_dim", 2304)),
        "attention_mask": torch.ones(batch, 5, dtype=torch.bool),
    }


def build(pipeline: str, transformer: Any) -> Any:
    pipe = assembled(pipeline, transformer=transformer, scheduler=scheduler())

    def encode_prompt(
        prompt: Any, device: Any, do_classifier_free_guidance: bool, negative_prompt: Any, **_: Any
    ) -> tuple[Any, ...]:
        every, mask = padded([*prompt, *(negative_prompt if do_classifier_free_guidance else [])], WIDTH)
        count = len(prompt)
        return every[:count], mask[:count], every[count:], mask[count:]

    pipe.encode_prompt = encode_prompt
    return pipe


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """32 x 48 pixels; without a VAE PRXPipeline takes 8 pixels for a latent."""
    return by_text(pipe, prompts, negative, references) | {"use_resolution_binning": False}


def drawing(pipeline: str, **config: Any) -> Drawing:
    return Drawing(pipeline, partial(build, pipeline), call, ("uc",), config, guides_one=True)


FAMILIES = (
    Family(
        adapter="prx", model="PRXTransformer2DModel", config=CONFIG, inputs=inputs,
        drawings=(drawing("PRXPipeline"), drawing("PRXPixelPipeline", **PIXEL)),
        releases=(
            Release("Photoroom/prx-1024-t2i-beta (the defaults of the class)", {}, taps=16),
            Release("Photoroom/prxpixel-t2i", PRX_PIXEL, taps=24, since="0.42"),
        ),
    ),
)  # fmt: skip
