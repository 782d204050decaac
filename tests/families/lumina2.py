"""Lumina-Image 2."""

from __future__ import annotations

from typing import Any

import torch

from .family import Drawing, Family, Release, Size, assembled, by_text, padded, scheduler

WIDTH = 12
CONFIG = {
    "sample_size": 16, "in_channels": 4, "hidden_size": 32, "num_layers": 2, "num_refiner_layers": 1,
    "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16, "axes_dim_rope": (4, 6, 6),
    "axes_lens": (64, 64, 64), "cap_feat_dim": WIDTH,
}  # fmt: skip
# Alpha-VLLM/Lumina-Image-2.0, transformer/config.json
LUMINA_IMAGE_2 = {"cap_feat_dim": 2304}


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As Lumina2Pipeline, without padding: time turned round."""
    return {
        "hidden_states": torch.randn(batch, config.get("in_channels", 16), 2 * height, 2 * width),
        "timestep": torch.full((batch,), 1 - sigma),
        "encoder_hidden_states": torch.randn(batch, 5, config["cap_feat_dim"]),
        "encoder_attention_mask": torch.ones(batch, 5, dtype=torch.bool),
    }


def with_lengths(transformer: Any) -> None:
    """Text lengths are read off the mask, values, which meta tensors have not."""
    embed = transformer.rope_embedder.forward
    transformer.rope_embedder.forward = lambda states, mask: embed(states, torch.ones(mask.shape, dtype=torch.bool))


def build(transformer: Any) -> Any:
    steps = scheduler(use_dynamic_shifting=True)
    pipe = assembled("Lumina2Pipeline", transformer=transformer, scheduler=steps)

    def encode_prompt(prompt: Any, guided: bool, negative_prompt: Any = None, **_: Any) -> tuple[Any, ...]:
        return *padded(prompt, WIDTH), *(padded(negative_prompt, WIDTH) if guided else (None, None))

    pipe.encode_prompt = encode_prompt
    return pipe


FAMILIES = (
    Family(
        adapter="lumina2", model="Lumina2Transformer2DModel", config=CONFIG, inputs=inputs,
        drawings=(Drawing("Lumina2Pipeline", build, by_text, ("c", "u")),),
        releases=(Release("Alpha-VLLM/Lumina-Image-2.0", LUMINA_IMAGE_2, taps=26, prepare=with_lengths),),
    ),
)  # fmt: skip
