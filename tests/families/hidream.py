"""HiDream-I1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .family import Drawing, Family, Release, assembled, embedding, padded, scheduler

WIDTH, POOLED, BLOCKS = 12, 8, 4
CONFIG = {
    "patch_size": 2, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "caption_channels": [WIDTH, WIDTH], "text_emb_dim": POOLED, "num_routed_experts": 2,
    "num_activated_experts": 1, "axes_dims_rope": (4, 6, 6), "max_resolution": (8, 8),
    "llama_layers": list(range(BLOCKS)),
}  # fmt: skip
# HiDream-ai/HiDream-I1-Full, transformer/config.json
FULL = {
    "patch_size": 2, "in_channels": 16, "num_layers": 16, "num_single_layers": 32, "attention_head_dim": 128,
    "num_attention_heads": 20, "caption_channels": [4096, 4096], "text_emb_dim": 2048, "num_routed_experts": 4,
    "num_activated_experts": 2, "axes_dims_rope": (64, 32, 32), "max_resolution": (128, 128),
    "llama_layers": [*range(32), *[31] * 16],
}  # fmt: skip


def inputs(config: dict[str, Any], height: int, width: int, batch: int, sigma: float) -> dict[str, Any]:
    """As HiDreamImagePipeline: 1 token of T5, 2 of Llama, which come twice."""
    t5, llama = config["caption_channels"]
    return {
        "hidden_states": torch.randn(batch, config["in_channels"], 2 * height, 2 * width),
        "timesteps": torch.full((batch,), 1000 * sigma),
        "encoder_hidden_states_t5": torch.randn(batch, 1, t5),
        "encoder_hidden_states_llama3": torch.randn(max(config["llama_layers"]) + 1, batch, 2, llama),
        "pooled_embeds": torch.randn(batch, config["text_emb_dim"]),
    }


def trained(transformer: Any) -> None:
    """In training mode the class reads no values off its tensors: experts see all tokens, patches stay patches."""
    transformer.train()


def build(transformer: Any) -> Any:
    pipe = assembled("HiDreamImagePipeline", transformer=transformer, scheduler=scheduler())
    pipe.default_sample_size = 8
    return pipe


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """Without a VAE, 16 pixels are a patch. The picture is wider than high: 12 patches, and 4 of padding."""
    every = [*prompts, *[negative or ""] * len(prompts)]
    t5, llama = padded(every, WIDTH)[0], torch.stack([padded(every, WIDTH)[0] * (n + 1) for n in range(BLOCKS)])
    pooled, own = torch.stack([embedding(prompt, POOLED)[0] for prompt in every]), len(prompts)
    options = {
        "prompt_embeds_t5": t5[:own], "prompt_embeds_llama3": llama[:, :own], "pooled_prompt_embeds": pooled[:own],
        "height": 48, "width": 64, "guidance_scale": 1.0,
    }  # fmt: skip
    if negative is not None:
        options |= {
            "negative_prompt_embeds_t5": t5[own:], "negative_prompt_embeds_llama3": llama[:, own:],
            "negative_pooled_prompt_embeds": pooled[own:], "guidance_scale": 3.0,
        }  # fmt: skip
    return options


FAMILIES = (
    Family(
        adapter="hidream", model="HiDreamImageTransformer2DModel", config=CONFIG, inputs=inputs,
        drawings=(Drawing("HiDreamImagePipeline", build, call, ("uc",), grid=(3, 4)),),
        releases=(Release("HiDream-ai/HiDream-I1-Full", FULL, taps=48, prepare=trained),),
    ),
)  # fmt: skip
