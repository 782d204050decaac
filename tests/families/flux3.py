"""FLUX.3, which no pipeline but a modular one drives."""

from __future__ import annotations

from typing import Any

import torch

from .family import Family, Release, Size, count, image_ids

WIDTH = 12
CONFIG = {
    "in_channels": 16, "cond_in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": WIDTH, "timestep_channels": 16, "axes_dims_rope": (4, 4, 4, 4),
}  # fmt: skip
# black-forest-labs/FLUX.3, transformer/config.json, as far as known: the class's defaults
DEV: dict[str, Any] = {}


def scaled(size: Size, picture: int) -> torch.Tensor:
    """(N, 4) ids (0, half the row, half the column, which picture)."""
    ids = image_ids(size, axes=4)
    return torch.cat([ids[:, :1], ids[:, 1:3] / 2, ids[:, 3:] + picture], 1)


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As the modular pipeline: references in an argument of their own."""
    sources = {
        "image_cond_hidden_states": torch.randn(batch, count(*references), config.get("cond_in_channels", 128)),
        "image_cond_ids": torch.cat([scaled(size, -1 - index) for index, size in enumerate(references)]),
    } if references else {}  # fmt: skip
    return {
        "hidden_states": torch.randn(batch, height * width, config.get("in_channels", 128)),
        "encoder_hidden_states": torch.randn(batch, 5, config.get("joint_attention_dim", 20480)),
        "timestep": torch.full((batch,), sigma),
        "img_ids": scaled((height, width), 0),
        "txt_ids": torch.zeros(5, 4),
        **sources,
    }


FAMILIES = (
    Family(
        adapter="flux3", model="Flux3Transformer2DModel", since="0.42", config=CONFIG, inputs=inputs,
        references=True, drawings=(),
        releases=(Release("black-forest-labs/FLUX.3 (the defaults of the class)", DEV, taps=28, references=1),),
    ),
)  # fmt: skip
