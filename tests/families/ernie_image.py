"""ERNIE-Image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .family import Drawing, Family, Release, assembled, embeddings, scheduler

WIDTH = 12
CONFIG = {
    "hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 32, "in_channels": 16,
    "out_channels": 16, "text_in_dim": WIDTH, "rope_axes_dim": (4, 6, 6),
}  # fmt: skip
# baidu/ERNIE-Image, transformer/config.json, as far as known: the class's defaults
ERNIE: dict[str, Any] = {}


def inputs(config: dict[str, Any], height: int, width: int, batch: int, sigma: float) -> dict[str, Any]:
    """As ErnieImagePipeline: latents already cut into patches."""
    return {
        "hidden_states": torch.randn(batch, config.get("in_channels", 128), height, width),
        "text_bth": torch.randn(batch, 5, config.get("text_in_dim", 2560)),
        "text_lens": torch.full((batch,), 5),
        "timestep": torch.full((batch,), 1000 * sigma),
    }


def build(transformer: Any) -> Any:
    return assembled("ErnieImagePipeline", transformer=transformer, scheduler=scheduler())


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """Without a VAE, 16 pixels are a patch."""
    options = {"prompt_embeds": embeddings(prompts, WIDTH), "height": 32, "width": 48, "guidance_scale": 1.0}
    if negative is not None:
        options |= {"negative_prompt_embeds": embeddings([negative] * len(prompts), WIDTH), "guidance_scale": 3.0}
    return options


FAMILIES = (
    Family(
        adapter="ernie-image", model="ErnieImageTransformer2DModel", config=CONFIG, inputs=inputs,
        drawings=(Drawing("ErnieImagePipeline", build, call, ("uc",)),),
        releases=(Release("baidu/ERNIE-Image (the defaults of the class)", ERNIE, taps=24),),
    ),
)  # fmt: skip
