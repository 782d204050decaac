"""CogView3-Plus, and CogView4 with its control pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import diffusers
import torch

from .family import Drawing, Family, Release, Size, assembled, by_text, padded, picture, scheduler, vae

WIDTH = 12
CONFIG = {
    "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "text_embed_dim": WIDTH, "time_embed_dim": 16, "condition_dim": 4, "pos_embed_max_size": 16, "sample_size": 16,
}  # fmt: skip
CONFIG4 = CONFIG | {"rope_axes_dim": (16, 16)}
# THUDM/CogView4-6B, transformer/config.json
COGVIEW4_6B = {"num_layers": 28, "attention_head_dim": 128, "num_attention_heads": 32}


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As the pipelines."""
    pixels = torch.tensor([[16.0 * height, 16.0 * width]] * batch)
    return {
        "hidden_states": torch.randn(batch, config.get("in_channels", 16), 2 * height, 2 * width),
        "encoder_hidden_states": torch.randn(batch, 5, config.get("text_embed_dim", 4096)),
        "timestep": torch.full((batch,), 1000 * sigma),
        "original_size": pixels,
        "target_size": pixels,
        "crop_coords": torch.zeros(batch, 2),
    }


def build(pipeline: str, transformer: Any) -> Any:
    if pipeline == "CogView3PlusPipeline":
        steps: Any = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    else:
        steps = scheduler(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear")
    pipe = assembled(pipeline, transformer=transformer, vae=vae(4), scheduler=steps)

    def encode_prompt(prompt: Any, negative_prompt: Any, guided: bool, **_: Any) -> tuple[Any, Any]:
        every = padded([*prompt, *(negative_prompt if guided else [])], WIDTH)[0]  # both texts have one length
        return every[: len(prompt)], every[len(prompt) :]

    pipe.encode_prompt = encode_prompt
    return pipe


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """32 x 48 pixels, 8 of them a latent."""
    options = by_text(pipe, prompts, negative, references)
    if "Control" in type(pipe).__name__:
        options["control_image"] = picture(0, 32, 48)
        torch.manual_seed(0)  # the pipeline draws its latent without a generator
    return options


def drawing(pipeline: str, *parts: str, **config: Any) -> Drawing:
    return Drawing(pipeline, partial(build, pipeline), call, parts, config)


FAMILIES = (
    Family(
        adapter="cogview3plus", model="CogView3PlusTransformer2DModel", config=CONFIG, inputs=inputs,
        drawings=(drawing("CogView3PlusPipeline", "uc"),),
        releases=(Release("THUDM/CogView3-Plus-3B (the defaults of the class)", {}, taps=30),),
    ),
    Family(
        adapter="cogview4", model="CogView4Transformer2DModel", config=CONFIG4, inputs=inputs,
        drawings=(drawing("CogView4Pipeline", "c", "u"), drawing("CogView4ControlPipeline", "c", "u", in_channels=8)),
        releases=(Release("THUDM/CogView4-6B", COGVIEW4_6B, taps=28),),
    ),
)  # fmt: skip
