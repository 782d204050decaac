"""Ideogram 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .family import Drawing, Family, Release, assembled, embeddings, image_ids, last_patches, scheduler

WIDTH, TEXT = 12, 12
CONFIG = {
    "in_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "intermediate_size": 32,
    "adaln_dim": 16, "llm_features_dim": WIDTH, "mrope_section": (4, 2, 2),
}  # fmt: skip
# ideogram-ai/ideogram-4, transformer/config.json, as far as known: the class's defaults
IDEOGRAM: dict[str, Any] = {}


def inputs(config: dict[str, Any], height: int, width: int, batch: int, sigma: float) -> dict[str, Any]:
    """As Ideogram4Pipeline: text and picture packed into one sequence, the picture counted from 65536."""
    picture, tokens = height * width, 5 + height * width
    text = torch.arange(5)[:, None].expand(-1, 3)
    ids = torch.cat([text, 65536 + image_ids((height, width)).long()])
    return {
        "hidden_states": torch.randn(batch, tokens, config.get("in_channels", 128)),
        "timestep": torch.full((batch,), 1 - sigma),
        "encoder_hidden_states": torch.randn(batch, tokens, config.get("llm_features_dim", 53248)),
        "position_ids": ids.expand(batch, -1, -1),
        "segment_ids": torch.ones(batch, tokens, dtype=torch.long),
        "indicator": torch.tensor([3] * 5 + [2] * picture).expand(batch, -1),
    }


def build(transformer: Any) -> Any:
    """The text encoder is replaced where its features leave it; ids and masks are the pipeline's own."""
    unconditional = type(transformer)(**CONFIG).eval().requires_grad_(False)
    pipe = assembled(
        "Ideogram4Pipeline", transformer=transformer, unconditional_transformer=unconditional, scheduler=scheduler()
    )

    def encode(prompt: list[str], grid_h: int, grid_w: int, max_sequence_length: int, device: Any) -> Any:
        texts = embeddings(prompt, WIDTH)
        features = torch.zeros(len(texts), max_sequence_length + grid_h * grid_w, WIDTH)
        for row, text in zip(features, texts, strict=True):
            row[max_sequence_length - len(text) : max_sequence_length] = text
        return features, *pipe._prepare_ids(list(map(len, texts)), grid_h, grid_w, max_sequence_length, device)

    pipe.encode_prompt = encode
    return pipe


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """Without a VAE, 16 pixels are a patch."""
    return {
        "prompt": list(prompts),
        "height": 32,
        "width": 48,
        "guidance_scale": 3.0,
        "guidance_schedule": None,
        "max_sequence_length": TEXT,
    }


FAMILIES = (
    Family(
        adapter="ideogram4", model="Ideogram4Transformer2DModel", since="0.39", config=CONFIG, inputs=inputs,
        patches=last_patches,
        drawings=(Drawing("Ideogram4Pipeline", build, call, ()),),
        releases=(Release("ideogram-ai/ideogram-4 (the defaults of the class)", IDEOGRAM, taps=34),),
    ),
)  # fmt: skip
