"""Bria 3.2."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from .family import Drawing, Family, Release, Size, assembled, by_text, image_ids, packed, padded, scheduler, vae

WIDTH = 12
CONFIG = {
    "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As BriaPipeline."""
    return {
        **packed(config, height, width, batch, 4096),
        "timestep": torch.full((batch,), 1000 * sigma),
        "img_ids": image_ids((height, width)),
        "txt_ids": torch.zeros(5, 3),
    }


def build(transformer: Any) -> Any:
    steps = scheduler(use_dynamic_shifting=True)
    pipe = assembled("BriaPipeline", transformer=transformer, vae=vae(4), scheduler=steps)

    def encode_prompt(
        prompt: Any, negative_prompt: Any, do_classifier_free_guidance: bool, **_: Any
    ) -> tuple[Any, ...]:
        every = padded([*prompt, *(negative_prompt if do_classifier_free_guidance else [])], WIDTH)[0]
        return every[: len(prompt)], every[len(prompt) :], torch.zeros(every.shape[1], 3)

    pipe.encode_prompt = encode_prompt
    return pipe


FAMILIES = (
    Family(
        adapter="bria", model="BriaTransformer2DModel", config=CONFIG, inputs=inputs,
        # 16 pixels are a patch
        drawings=(Drawing("BriaPipeline", build, partial(by_text, width=64), ("uc",), grid=(2, 4)),),
        releases=(Release("briaai/BRIA-3.2 (the defaults of the class)", {}, taps=57),),
    ),
)  # fmt: skip
