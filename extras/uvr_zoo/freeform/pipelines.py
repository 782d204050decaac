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
from .students import COURSES, fuse
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


def part(name: str) -> str:
    """The folder of a pipeline's folder in which its weights are: "transformer", or a student's "lora"."""
    return "lora" if name in COURSES else "transformer"


def shipped() -> tuple[str, ...]:
    """The free-form pipelines that ship trained, students among them."""
    return tuple(name for name in (*names(), *COURSES) if (FOLDER / name / part(name)).is_dir())


def trained(name: str) -> Path | None:
    """The folder of the weights that ship, if they do."""
    return FOLDER / name / part(name) if name in shipped() else None


def load_free(name: str, folder: Path | None = None) -> Any:
    """A trained free-form pipeline, see `pipeline`; `folder`: of other weights. Raises UVRError: none ships."""
    weights = folder or trained(name)
    if weights is None:
        raise UVRError(f"no trained free-form pipeline {name!r}{did_you_mean(name, shipped())}")
    return pipeline(name, TEXT, transformer=weights)


def family(name: str) -> Architecture:
    """How a pipeline's classes are called. Raises UVRError: there is no such free-form pipeline."""
    if name in COURSES:
        return family(COURSES[name].teacher)
    if name not in names():
        raise UVRError(f"no free-form pipeline {name!r}{did_you_mean(name, (*names(), *COURSES))}")
    return FAMILIES.get(name) or _QWEN.get(name) or ARCHITECTURES[name]


def recipe(name: str) -> Recipe:
    """The recipe of a free-form pipeline: the first edition's, at the second's schedule and settings."""
    if name in COURSES:
        return attrs.evolve(recipe(COURSES[name].teacher), name=name, sampling=COURSES[name].sampling)
    kind: Any = family(name)
    first = RECIPES.get(name) or attrs.evolve(RECIPES["flux"], name=name, transformer=kind.config)
    return attrs.evolve(first, shift=SHIFT, sampling=SAMPLING.get(name) or kind.sampling)


def pipeline(name: str, text: Path, vae: Path | None = None, transformer: Path | None = None) -> Any:
    """A pipeline of separately stored parts, on CPU in float32; it draws 96 x 96 pixels by default.

    Args:
        name: one of `names()`, or a student.
        text: folder of the free-form encoders.
        vae: folder of an AutoencoderKL, for Qwen-Image of an AutoencoderKLQwenImage; None: the shipped one.
        transformer: folder of a transformer, as diffusers or `storage` wrote it; None: what training starts from, the
            first edition's or a new one. Of a student, the folder of a LoRA over what ships of its teacher; None: none.
    """
    if name in COURSES:
        pipe = pipeline(COURSES[name].teacher, text, vae, trained(COURSES[name].teacher))
        if transformer is not None:
            fuse(pipe, COURSES[name], transformer)
        return pipe
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
