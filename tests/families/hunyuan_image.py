"""HunyuanImage 2.1 and its refiner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch

from .family import Drawing, Family, Release, assembled, padded, scheduler

WIDTH, GLYPHS = 12, 8
CONFIG = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
    "num_single_layers": 2, "num_refiner_layers": 1, "text_embed_dim": WIDTH, "text_embed_2_dim": GLYPHS,
    "rope_axes_dim": (8, 8),
}  # fmt: skip
# hunyuanvideo-community/HunyuanImage-2.1-Diffusers, transformer/config.json: the class's defaults and byT5's width
# A mask selects everything on the meta device, so that each text token comes twice, as valid and as padding.
HUNYUAN = {"text_embed_2_dim": 1472}


def inputs(config: dict[str, Any], height: int, width: int, batch: int, sigma: float) -> dict[str, Any]:
    """As HunyuanImagePipeline: 3 tokens of the one encoder, 2 of the other."""
    return {
        "hidden_states": torch.randn(batch, config.get("in_channels", 64), height, width),
        "timestep": torch.full((batch,), 1000 * sigma),
        "encoder_hidden_states": torch.randn(batch, 3, config.get("text_embed_dim", 3584)),
        "encoder_attention_mask": torch.ones(batch, 3, dtype=torch.long),
        "encoder_hidden_states_2": torch.randn(batch, 2, config["text_embed_2_dim"]),
        "encoder_attention_mask_2": torch.ones(batch, 2, dtype=torch.long),
    }


def build(transformer: Any) -> Any:
    return assembled("HunyuanImagePipeline", transformer=transformer, scheduler=scheduler())


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """Without a VAE, 32 pixels are a patch. A guider runs the passes; a distilled model has none."""

    def text(prompts: Sequence[str], prefix: str) -> dict[str, torch.Tensor]:
        (embeds, mask), (glyphs, glyph_mask) = padded(prompts, WIDTH), padded(prompts, GLYPHS)
        return {
            f"{prefix}_embeds": embeds, f"{prefix}_embeds_mask": mask.long(), f"{prefix}_embeds_2": glyphs,
            f"{prefix}_embeds_mask_2": glyph_mask.long(),
        }  # fmt: skip

    pipe.guider = None if negative is None else diffusers.ClassifierFreeGuidance(guidance_scale=3.0)
    options = {"height": 64, "width": 96, **text(prompts, "prompt")}
    return options if negative is None else options | text([negative] * len(prompts), "negative_prompt")


FAMILIES = (
    Family(
        adapter="hunyuan-image", model="HunyuanImageTransformer2DModel", config=CONFIG, inputs=inputs,
        drawings=(Drawing("HunyuanImagePipeline", build, call, ("c", "u"), needs=("ClassifierFreeGuidance",)),),
        releases=(Release("hunyuanvideo-community/HunyuanImage-2.1-Diffusers", HUNYUAN, taps=60, text=10),),
    ),
)  # fmt: skip
