"""Bria FIBO 2, text to image and edits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch

from .family import Drawing, Family, Release, Size, assembled, by_text, padded, picture, scheduler

WIDTH = 12
# A gist token for each text token, between 2 and 12: prompts of unequal length have unequal gists.
CONFIG = {
    "in_channels": 4, "dim": 32, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "cap_feat_dim": WIDTH,
    "injection_layer_ids": (1,), "perceiver_num_layers": 1, "min_num_gist_tokens": 2, "max_num_gist_tokens": 12,
    "gist_step": 1, "gist_min_text_len": 2, "gist_max_text_len": 12, "axes_dims": (4, 6, 6), "axes_lens": (64, 64, 64),
}  # fmt: skip


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As BriaFibo2Pipeline, without padding."""
    channels, layers = config.get("in_channels", 32), 1 + len(config.get("injection_layer_ids", (6, 14, 22, 30, 38)))
    return {
        "hidden_states": torch.randn(batch, channels, 2 * height, 2 * width),
        "timestep": torch.full((batch,), sigma),
        "encoder_hidden_states": torch.randn(batch, layers, 5, config.get("cap_feat_dim", 7680)),
        "context_latents": [torch.randn(batch, channels, 2 * rows, 2 * columns) for rows, columns in references],
    }


def build(transformer: Any) -> Any:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=2,
        mid_block_add_attention=False,
    ).eval()  # fmt: skip
    steps = scheduler(use_dynamic_shifting=True)
    pipe = assembled("BriaFibo2Pipeline", transformer=transformer, vae=vae, scheduler=steps)
    pipe.default_sample_size = 8  # two sources and more are brought to about 64 x 64 pixels

    def encode_prompt(prompt: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        embeds, mask = padded(prompt, WIDTH)
        return torch.stack([embeds, embeds.flip(-1)], 1), None if mask.all() else mask

    pipe.encode_prompt = encode_prompt
    return pipe


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """32 x 48 pixels, 16 of them a patch; the sources are those of every prompt."""
    return by_text(pipe, prompts, negative, references) | {
        "image": [picture(number, 64, 64) for number in range(references)] or None
    }


FAMILIES = (
    Family(
        adapter="bria-fibo2", model="BriaFibo2Transformer2DModel", since="0.42", config=CONFIG, inputs=inputs,
        references=True,
        drawings=(Drawing("BriaFibo2Pipeline", build, call, ("c", "u"), references=(0, 1, 2)),),
        releases=(Release("briaai/FIBO-2 (the defaults of the class)", {}, taps=44, text=256, references=1),),
    ),
)  # fmt: skip
