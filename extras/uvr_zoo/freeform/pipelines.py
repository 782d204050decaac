"""Load free-form pipelines: diffusers' classes with the free-form text encoders and autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers

from ..architectures import frozen
from . import storage
from .encoders import load
from .words import MAX_TOKENS

CANVAS = 96  # pixels, both sides, unless the caller says otherwise


def flux(text: Path, vae: Path, transformer: Path, shift: float = 2.5) -> diffusers.FluxPipeline:
    """A FluxPipeline of separately stored parts, on CPU in float32; it draws 96 x 96 pixels by default.

    Args:
        text: folder of the free-form encoders.
        vae: folder of an AutoencoderKL.
        transformer: folder of a FluxTransformer2DModel, as diffusers or as `storage` wrote it.
        shift: timestep shift of the scheduler.
    """
    encoder, pooler, tokenizer = load(text)
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=False),
        vae=frozen(diffusers.AutoencoderKL.from_pretrained(vae).float()),
        text_encoder=pooler,
        tokenizer=tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        transformer=storage.load(diffusers.FluxTransformer2DModel, transformer),
    )
    pipe.default_sample_size = CANVAS // pipe.vae_scale_factor
    pipe.set_progress_bar_config(disable=True)
    return pipe


SAMPLING: dict[str, Any] = {
    "num_inference_steps": 20,
    "guidance_scale": 1.0,
    "true_cfg_scale": 3.0,
    "negative_prompt": "",
    "max_sequence_length": MAX_TOKENS,
}
