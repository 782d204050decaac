"""Load free-form pipelines: diffusers' classes with the free-form text encoders and autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import diffusers

from uvr_core.errors import UVRError, did_you_mean

from .. import storage
from ..architectures import ARCHITECTURES, SD3, Architecture, Flux, Qwen, load_part
from ..pipelines import DATA, scheduler, working_at
from ..recipes import RECIPES, Recipe
from ..vision_text import processor
from . import chat
from .encoders import load
from .families import FAMILIES
from .words import MAX_TOKENS

FOLDER = DATA / "freeform"
TEXT = FOLDER / "text"
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
    "qwen-image": {"num_inference_steps": 20, "true_cfg_scale": 3.0, "negative_prompt": ""},
    "qwen-image-edit": {"num_inference_steps": 20, "true_cfg_scale": 2.0, "negative_prompt": ""},
}
# Qwen's conditions are padded to so many tokens: a caption with the rest of its turn, and the picture's own.
_QWEN = {"qwen-image": Qwen(length=60), "qwen-image-edit": Qwen("QwenImageEditPipeline", length=104)}


def names() -> tuple[str, ...]:
    """The pipelines that can be trained on free-form scenes."""
    return (*SAMPLING, *FAMILIES)


def shipped() -> tuple[str, ...]:
    """The free-form pipelines that ship trained."""
    return tuple(name for name in names() if (FOLDER / name / "transformer").is_dir())


def load_free(name: str, folder: Path | None = None) -> Any:
    """A trained free-form pipeline, see `pipeline`; `folder`: of another transformer. Raises UVRError: none ships."""
    if folder is None and name not in shipped():
        raise UVRError(f"no trained free-form pipeline {name!r}{did_you_mean(name, shipped())}")
    return pipeline(name, TEXT, transformer=folder or FOLDER / name / "transformer")


def family(name: str) -> Architecture:
    """How a pipeline's classes are called. Raises UVRError: there is no such free-form pipeline."""
    if name not in names():
        raise UVRError(f"no free-form pipeline {name!r}{did_you_mean(name, names())}")
    return FAMILIES.get(name) or _QWEN.get(name) or ARCHITECTURES[name]


def recipe(name: str) -> Recipe:
    """The recipe of a free-form pipeline: the first edition's, at the second's schedule and settings."""
    kind: Any = family(name)
    first = RECIPES.get(name) or attrs.evolve(RECIPES["flux"], name=name, transformer=kind.config)
    return attrs.evolve(first, shift=SHIFT, sampling=SAMPLING.get(name) or kind.sampling)


def pipeline(name: str, text: Path, vae: Path | None = None, transformer: Path | None = None) -> Any:
    """A pipeline of separately stored parts, on CPU in float32; it draws 96 x 96 pixels by default.

    Args:
        name: one of `names()`.
        text: folder of the free-form encoders.
        vae: folder of an AutoencoderKL, for Qwen-Image of an AutoencoderKLQwenImage; None: the shipped one.
        transformer: folder of a transformer, as diffusers or `storage` wrote it; None: what training starts from, the
            first edition's or a new one.
    """
    kind: Any = family(name)
    vae = vae or DATA / "shared" / ("vae_qwen" if isinstance(kind, Qwen) else "vae")
    if isinstance(kind, Flux | SD3):
        t5, clip, tokenizer = load(text)
        parts = {"vae": load_part("AutoencoderKL", vae), **kind.encoders(clip, t5, tokenizer)}
    elif isinstance(kind, Qwen):
        model, tokenizer, _ = chat.load("qwen-vl", text, text / "words.safetensors")
        parts = {"vae": load_part("AutoencoderKLQwenImage", vae), "text_encoder": model, "tokenizer": tokenizer}
        parts |= {"processor": processor(tokenizer, CANVAS)} if kind.sees_image else {}
    else:
        model, tokenizer, _ = chat.load(kind.text, text, text / "words.safetensors")
        parts = {"vae": kind.vae(vae), **kind.encoders(model, tokenizer)}
    class_of = getattr(diffusers, kind.transformer)
    folder = transformer or DATA / name / "transformer"
    net = storage.load(class_of, folder) if folder.exists() else class_of(**recipe(name).transformer)
    pipeline_class = working_at(CANVAS) if name == "qwen-image-edit" else getattr(diffusers, kind.pipeline)
    pipe = pipeline_class(scheduler=scheduler(recipe(name)), transformer=net.eval(), **parts)
    pipe.default_sample_size = CANVAS // pipe.vae_scale_factor
    kind.fit(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe
