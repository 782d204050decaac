"""Load free-form pipelines: diffusers' classes with the free-form text encoders and autoencoder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import diffusers

from ..architectures import ARCHITECTURES, SD3, Flux, load_part
from ..pipelines import DATA, assemble
from ..recipes import RECIPES, Recipe, recipe_of
from . import storage
from .encoders import load
from .words import MAX_TOKENS

CANVAS = 96  # pixels, both sides, unless the caller says otherwise
SHIFT = 2.5  # timestep shift of the schedulers
SAMPLING: dict[str, dict[str, Any]] = {
    "flux": {
        "num_inference_steps": 20,
        "guidance_scale": 1.0,
        "true_cfg_scale": 3.0,
        "negative_prompt": "",
        "max_sequence_length": MAX_TOKENS,
    },
    "sd3": {"num_inference_steps": 20, "guidance_scale": 3.0, "max_sequence_length": MAX_TOKENS},
    "flux-kontext": {
        "num_inference_steps": 20,
        "guidance_scale": 1.0,
        "max_area": CANVAS * CANVAS,
        "_auto_resize": False,
        "max_sequence_length": MAX_TOKENS,
    },
}


def names() -> tuple[str, ...]:
    """The zoo's pipelines whose text encoders have a free-form edition."""
    return tuple(name for name in RECIPES if isinstance(ARCHITECTURES[name], Flux | SD3))


def recipe(name: str) -> Recipe:
    """The recipe of a free-form pipeline: the first edition's, at the second's schedule and settings."""
    return attrs.evolve(recipe_of(name), shift=SHIFT, sampling=SAMPLING[name])


def pipeline(name: str, text: Path, vae: Path, transformer: Path | None = None) -> Any:
    """A pipeline of separately stored parts, on CPU in float32; it draws 96 x 96 pixels by default.

    Args:
        name: one of `names()`.
        text: folder of the free-form encoders.
        vae: folder of the autoencoder.
        transformer: folder of a transformer as diffusers or as `storage` wrote it; None: the first edition's, from
            which training starts.
    """
    family = ARCHITECTURES[name]
    if not isinstance(family, Flux | SD3):
        raise ValueError(f"{name!r} has no free-form text encoder; there are: {', '.join(names())}")
    t5, clip, tokenizer = load(text)
    shared = SimpleNamespace(vae=load_part("AutoencoderKL", vae), **family.encoders(clip, t5, tokenizer))
    model = storage.load(getattr(diffusers, family.transformer), transformer or DATA / name / "transformer")
    pipe = assemble(recipe(name), model, shared)
    pipe.default_sample_size = CANVAS // pipe.vae_scale_factor
    return pipe
