"""Chroma: text to image, image to image, inpainting."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from .family import Drawing, Family, Release, assembled, image_ids, packed, padded, picture, scheduler, vae

WIDTH = 12
CONFIG = {
    "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6), "approximator_num_channels": 16,
    "approximator_hidden_dim": 16, "approximator_layers": 1,
}  # fmt: skip
# lodestones/Chroma1-HD, transformer/config.json: the class's defaults
HD: dict[str, Any] = {}


def inputs(config: dict[str, Any], height: int, width: int, batch: int, sigma: float) -> dict[str, Any]:
    """As ChromaPipeline."""
    return {
        **packed(config, height, width, batch, 4096),
        "timestep": torch.full((batch,), sigma),
        "img_ids": image_ids((height, width)),
        "txt_ids": torch.zeros(5, 3),
        "attention_mask": torch.ones(batch, 5 + height * width),
    }


def build(pipeline: str, transformer: Any) -> Any:
    """The inpainting pipeline of diffusers 0.42.1 asks for a setting that the class does not have."""
    transformer.register_to_config(guidance_embeds=False)
    return assembled(pipeline, transformer=transformer, vae=vae(), scheduler=scheduler(use_dynamic_shifting=True))


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """8 x 12 pixels; text is masked behind its first padding token."""
    embeds, mask = padded([*prompts, negative or ""], WIDTH)
    mask = torch.cat([torch.ones(len(mask), 1), mask[:, :-1]], 1)
    options = {
        "prompt_embeds": embeds[:-1], "prompt_attention_mask": mask[:-1], "height": 8, "width": 12,
        "guidance_scale": 1.0,
    }  # fmt: skip
    if negative is not None:
        options |= {
            "negative_prompt_embeds": embeds[-1:].repeat(len(prompts), 1, 1), "guidance_scale": 3.0,
            "negative_prompt_attention_mask": mask[-1:].repeat(len(prompts), 1),
        }  # fmt: skip
    if type(pipe).__name__ != "ChromaPipeline":
        options |= {"image": picture(0, 8, 12), "strength": 1.0}
    if "Inpaint" in type(pipe).__name__:
        options["mask_image"] = picture(1, 8, 12).convert("L")
    return options


def drawing(name: str) -> Drawing:
    return Drawing(f"Chroma{name}Pipeline", partial(build, f"Chroma{name}Pipeline"), call, ("c", "u"))


FAMILIES = (
    Family(
        adapter="chroma", model="ChromaTransformer2DModel", config=CONFIG, inputs=inputs,
        drawings=(drawing(""), drawing("Img2Img"), drawing("Inpaint")),
        releases=(Release("lodestones/Chroma1-HD", HD, taps=57),),
    ),
)  # fmt: skip
