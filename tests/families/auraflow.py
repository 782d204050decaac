"""AuraFlow."""

from __future__ import annotations

from typing import Any

import torch

from .family import Drawing, Family, Release, Size, assembled, by_text, padded, scheduler

WIDTH = 12
CONFIG = {
    "sample_size": 16, "in_channels": 4, "num_mmdit_layers": 2, "num_single_dit_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": WIDTH, "caption_projection_dim": 32, "pos_embed_max_size": 256,
}  # fmt: skip


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As AuraFlowPipeline."""
    return {
        "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
        "encoder_hidden_states": torch.randn(batch, 5, config.get("joint_attention_dim", 2048)),
        "timestep": torch.full((batch,), sigma),
    }


def build(transformer: Any) -> Any:
    pipe = assembled("AuraFlowPipeline", transformer=transformer, scheduler=scheduler())

    def encode_prompt(
        prompt: Any, negative_prompt: Any, do_classifier_free_guidance: bool, **_: Any
    ) -> tuple[Any, ...]:
        every, mask = padded([*prompt, *(negative_prompt if do_classifier_free_guidance else [])], WIDTH)
        return every[: len(prompt)], mask[: len(prompt)], every[len(prompt) :], mask[len(prompt) :]

    pipe.encode_prompt = encode_prompt
    return pipe


FAMILIES = (
    Family(
        adapter="auraflow", model="AuraFlowTransformer2DModel", config=CONFIG, inputs=inputs,
        drawings=(Drawing("AuraFlowPipeline", build, by_text, ("uc",)),),
        # eight registers join the text
        releases=(Release("fal/AuraFlow (the defaults of the class)", {}, taps=36, text=13),),
    ),
)  # fmt: skip
