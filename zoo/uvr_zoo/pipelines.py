"""Build, save and load the zoo's pipelines."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, T5EncoderModel

from .recipes import RECIPES, Recipe
from .scenes import SIZE
from .text import ZooTokenizer

DATA = Path(str(files("uvr_zoo"))) / "data"


def names() -> tuple[str, ...]:
    """The pipelines that `load` knows."""
    return tuple(RECIPES)


def parts(folder: Path | None = None) -> SimpleNamespace:
    """The parts that zoo pipelines share: VAE, tokenizers and text encoders, in float32 and eval mode."""
    folder = folder or DATA / "shared"
    return SimpleNamespace(
        vae=AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32).eval().requires_grad_(False),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        .eval()
        .requires_grad_(False),
        text_encoder_2=T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32)
        .eval()
        .requires_grad_(False),
        tokenizer=ZooTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=ZooTokenizer.from_pretrained(folder / "tokenizer"),
    )


def assemble(recipe: Recipe, transformer: torch.nn.Module, shared: Any) -> FluxPipeline:
    """A FluxPipeline of a trained transformer and the shared parts."""
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=recipe.shift, use_dynamic_shifting=False),
        transformer=transformer.eval(),
        **vars(shared),
    )
    pipe.default_sample_size = SIZE // pipe.vae_scale_factor  # else diffusers draws 128 latents a side
    return pipe


def export(recipe: Recipe, transformer: torch.nn.Module, folder: Path) -> None:
    """Write a trained transformer (float16) and its scheduler in diffusers' format under `folder`."""
    import copy

    copy.deepcopy(transformer).half().save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=recipe.shift, use_dynamic_shifting=False).save_pretrained(
        folder / "scheduler"
    )


def load(name: str, folder: str | Path | None = None) -> FluxPipeline:
    """Load a zoo pipeline, on CPU in float32 and ready to call.

    Args:
        name: one of `names()`.
        folder: a folder made by `uvr zoo train ... --export`, instead of the shipped one.

    Raises:
        ValueError: unknown name.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown zoo pipeline {name!r}; there are: {', '.join(RECIPES)}")
    root = Path(folder) if folder is not None else DATA / name
    shared = parts()
    pipe = assemble(
        RECIPES[name], FluxTransformer2DModel.from_pretrained(root / "transformer", dtype=torch.float32), shared
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def card(name: str) -> dict[str, Any]:
    """The machine-readable part of a pipeline's model card."""
    return json.loads((DATA / name / "card.json").read_text())
