"""Ovis-Image."""

from __future__ import annotations

from typing import Any

import torch

from .family import Drawing, Family, Release, Size, assembled, by_text, image_ids, packed, padded, scheduler

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
        **packed(config, height, width, batch, 2048),
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


FAMILIES = (
    Family(
        adapter="ovis-image", model="OvisImageTransformer2DModel", config=CONFIG, inputs=inputs,
        drawings=(Drawing("OvisImagePipeline", build, by_text, ("c", "u")),),
        releases=(Release("AIDC-AI/Ovis-Image-7B (the defaults of the class)", {}, taps=33),),
    ),
)  # fmt: skip
