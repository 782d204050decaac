"""Bria FIBO and FIBO Edit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from .family import (
    Drawing,
    Family,
    Release,
    Size,
    assembled,
    by_text,
    count,
    image_ids,
    padded,
    picture,
    scheduler,
    wan_vae,
)

WIDTH, LAYERS = 12, 4
SEVERAL_PROMPTS = "0.42"  # release at the latest in which FIBO Edit takes several prompts and several sources
CONFIG = {
    "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6), "text_encoder_dim": WIDTH,
}  # fmt: skip
# briaai/FIBO, transformer/config.json
FIBO = {"in_channels": 48, "num_layers": 8, "num_single_layers": 38}


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As BriaFiboEditPipeline: ids (picture, row, column), 1, 2 .. for the sources."""
    sizes, layers = ((height, width), *references), config["num_layers"] + config["num_single_layers"]
    return {
        "hidden_states": torch.randn(batch, count(*sizes), config["in_channels"]),
        "encoder_hidden_states": torch.randn(batch, 5, config.get("joint_attention_dim", 4096)),
        "text_encoder_layers": [torch.randn(batch, 5, config.get("text_encoder_dim", 2048)) for _ in range(layers)],
        "timestep": torch.full((batch,), 1000 * sigma),
        "img_ids": image_ids(*sizes),
        "txt_ids": torch.zeros(5, 3),
    }


def build(pipeline: str, transformer: Any) -> Any:
    steps = scheduler(use_dynamic_shifting=True)
    pipe = assembled(pipeline, transformer=transformer, vae=wan_vae(5), scheduler=steps)

    def encode_prompt(prompt: Any, negative_prompt: Any, guidance_scale: float, **_: Any) -> tuple[Any, ...]:
        every, mask = padded([*prompt, *(negative_prompt if guidance_scale > 1 else [])], WIDTH)
        (cond, uncond), masks = every.tensor_split([len(prompt)]), mask.float().tensor_split([len(prompt)])
        layers = [[part.flip(-1)] * LAYERS for part in (cond, uncond)]
        return cond, uncond, torch.zeros(every.shape[1], 3), *masks, *layers

    pipe.encode_prompt = encode_prompt
    return pipe


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """32 x 64 pixels, of which 16 are a patch; the sources are those of every prompt."""
    options = by_text(pipe, prompts, negative, references, width=64)
    if "Edit" in type(pipe).__name__:
        options["prompt"] = [json.dumps({"edit_instruction": prompt}) for prompt in prompts]
        options["image"] = [picture(number, 32, 48) for number in range(references)] or None
    return options


FAMILIES = (
    Family(
        adapter="bria-fibo", model="BriaFiboTransformer2DModel", config=CONFIG, inputs=inputs, references=True,
        drawings=tuple(
            Drawing(name, partial(build, name), call, ("uc",), grid=(2, 4), references=references, since=since)
            for name, references, since in (
                ("BriaFiboPipeline", (0,), ""), ("BriaFiboEditPipeline", (0, 1, 2), SEVERAL_PROMPTS)
            )
        ),
        releases=(
            Release("briaai/FIBO", FIBO, taps=46), Release("briaai/Fibo-Edit", FIBO, taps=46, references=1),
        ),
    ),
)  # fmt: skip
