"""Ovis-Image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .family import Drawing, Family, Release, Size, assembled, image_ids, padded, scheduler

WIDTH = 12
CONFIG = {
    "in_channels": 16, "out_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As OvisImagePipeline."""
    return {
        "hidden_states": torch.randn(batch, height * width, config.get("in_channels", 64)),
        "encoder_hidden_states": torch.randn(batch, 5, config.get("joint_attention_dim", 2048)),
        "timestep": torch.full((batch,), sigma),
        "img_ids": image_ids((height, width)),
        "txt_ids": torch.zeros(5, 3),
    }


def build(transformer: Any) -> Any:
    pipe = assembled("OvisImagePipeline", transformer=transformer, scheduler=scheduler(use_dynamic_shifting=True))

    def encode_prompt(
        prompt: Any, negative_prompt: Any = None, do_classifier_free_guidance: bool | None = None, **_: Any
    ) -> tuple[Any, ...]:
        prompts = [prompt, negative_prompt if do_classifier_free_guidance else [""]]
        if do_classifier_free_guidance is None:  # diffusers 0.38 asks for one text at a time
            prompts = prompts[:1]
        texts = [padded(text, WIDTH)[0] for text in prompts]
        return (*texts, *(torch.zeros(text.shape[1], 3) for text in texts))

    pipe.encode_prompt = encode_prompt
    return pipe


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """32 x 48 pixels; without a VAE the pipeline takes 8 pixels for a latent."""
    options = {"prompt": list(prompts), "height": 32, "width": 48, "guidance_scale": 1.0}
    if negative is not None:
        options |= {"negative_prompt": [negative] * len(prompts), "guidance_scale": 3.0}
    return options


FAMILIES = (
    Family(
        adapter="ovis-image", model="OvisImageTransformer2DModel", config=CONFIG, inputs=inputs,
        drawings=(Drawing("OvisImagePipeline", build, call, ("c", "u")),),
        releases=(Release("AIDC-AI/Ovis-Image-7B (the defaults of the class)", {}, taps=33),),
    ),
)  # fmt: skip
