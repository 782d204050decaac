"""Krea 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .family import Drawing, Family, Release, assembled, image_ids, padded, scheduler

LAYERS, WIDTH = 2, 16  # of the text encoder, whose hidden states come stacked
CONFIG = {
    "in_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 32, "timestep_embed_dim": 16, "text_hidden_dim": WIDTH, "num_text_layers": LAYERS,
    "text_num_attention_heads": 2, "text_num_key_value_heads": 2, "text_intermediate_size": 16,
    "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
# krea/Krea-2, transformer/config.json, as far as known: the class's defaults
KREA: dict[str, Any] = {}


def inputs(config: dict[str, Any], height: int, width: int, batch: int, sigma: float) -> dict[str, Any]:
    """As Krea2Pipeline: position ids of text and picture together."""
    layers, features = config.get("num_text_layers", 12), config.get("text_hidden_dim", 2560)
    return {
        "hidden_states": torch.randn(batch, height * width, config.get("in_channels", 64)),
        "encoder_hidden_states": torch.randn(batch, 5, layers, features),
        "timestep": torch.full((batch,), sigma),
        "position_ids": torch.cat([torch.zeros(5, 3), image_ids((height, width))]),
        "encoder_attention_mask": torch.ones(batch, 5, dtype=torch.bool),
    }


def build(transformer: Any) -> Any:
    return assembled("Krea2Pipeline", transformer=transformer, scheduler=scheduler(use_dynamic_shifting=True))


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """Without a VAE, 16 pixels are a patch."""

    def text(prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        embeds, mask = padded(prompts, LAYERS * WIDTH)
        return embeds.unflatten(2, (LAYERS, WIDTH)), mask

    embeds, mask = text(prompts)
    options = {"prompt_embeds": embeds, "prompt_embeds_mask": mask, "height": 32, "width": 48, "guidance_scale": 0.0}
    if negative is not None:  # one set of position ids serves both passes
        embeds, mask = text([*prompts, *[negative] * len(prompts)])
        count = len(prompts)
        options |= {"prompt_embeds": embeds[:count], "prompt_embeds_mask": mask[:count], "guidance_scale": 3.0}
        options |= {"negative_prompt_embeds": embeds[count:], "negative_prompt_embeds_mask": mask[count:]}
    return options


FAMILIES = (
    Family(
        adapter="krea2", model="Krea2Transformer2DModel", since="0.39", config=CONFIG, inputs=inputs,
        drawings=(Drawing("Krea2Pipeline", build, call, ("c", "u")),),
        releases=(Release("krea/Krea-2 (the defaults of the class)", KREA, taps=28),),
    ),
)  # fmt: skip
