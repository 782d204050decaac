"""GLM-Image: text to image, and with source pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .family import Drawing, Family, Release, assembled, padded, picture, scheduler, vae

WIDTH, CODES = 12, 8
CONFIG = {
    "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "text_embed_dim": WIDTH, "time_embed_dim": 16, "condition_dim": 4, "prior_vq_quantizer_codebook_size": CODES,
}  # fmt: skip
# zai-org/GLM-Image, transformer/config.json, as far as known: the class's defaults
GLM: dict[str, Any] = {}


def inputs(config: dict[str, Any], height: int, width: int, batch: int, sigma: float) -> dict[str, Any]:
    """As GlmImagePipeline without sources: a prior token for each patch, time t - 1."""
    codes, size = config.get("prior_vq_quantizer_codebook_size", 16384), torch.tensor([[16.0 * height, 16.0 * width]])
    return {
        "hidden_states": torch.randn(batch, config.get("in_channels", 16), 2 * height, 2 * width),
        "encoder_hidden_states": torch.randn(batch, 5, config.get("text_embed_dim", 1472)),
        "prior_token_id": torch.randint(codes, (batch, height * width)),
        "prior_token_drop": torch.zeros(batch, height * width, dtype=torch.bool),
        "timestep": torch.full((batch,), 1000 * sigma - 1),
        "target_size": size.expand(batch, -1),
        "crop_coords": torch.zeros(batch, 2),
    }


def build(transformer: Any) -> Any:
    pipe = assembled("GlmImagePipeline", transformer=transformer, vae=vae(), scheduler=scheduler())
    pipe.vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    return pipe


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """16 x 24 pixels of 4 x 4 to a patch; the prior tokens are those of no prompt, so that the text alone tells."""
    embeds, own = padded([*prompts, *[negative or ""] * len(prompts)], WIDTH)[0], len(prompts)
    tokens = torch.Generator().manual_seed(0)
    options = {
        "prompt_embeds": embeds[:own], "prior_token_ids": torch.randint(CODES, (own, 24), generator=tokens),
        "height": 16, "width": 24, "guidance_scale": 1.0,
    }  # fmt: skip
    if negative is not None:
        options |= {"negative_prompt_embeds": embeds[own:], "guidance_scale": 3.0}
    if references:
        options |= {
            "image": [[picture(number, 16, 8) for number in range(references)] for _ in prompts],
            "source_image_grid_thw": [torch.tensor([[1, 4, 2]] * references) for _ in prompts],
            "prior_token_image_ids": [torch.randint(CODES, (8 * references,), generator=tokens) for _ in prompts],
        }  # fmt: skip
    return options


FAMILIES = (
    Family(
        adapter="glm-image", model="GlmImageTransformer2DModel", config=CONFIG, inputs=inputs,
        drawings=(Drawing("GlmImagePipeline", build, call, ("c", "u"), grid=(4, 6), references=(0, 2), before=1),),
        releases=(Release("zai-org/GLM-Image (the defaults of the class)", GLM, taps=30),),
    ),
)  # fmt: skip
