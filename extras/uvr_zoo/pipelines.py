"""Build, save and load the zoo's pipelines."""

from __future__ import annotations

import inspect
import json
import types
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch

from . import storage
from .architectures import ARCHITECTURES
from .recipes import RECIPES, Recipe
from .scenes import SIZE

DATA = Path(str(files("uvr_zoo"))) / "data"


def names() -> tuple[str, ...]:
    """The pipelines that `load` knows."""
    return tuple(RECIPES)


def parts(name: str = "flux", folder: Path | None = None) -> SimpleNamespace:
    """What a zoo pipeline has besides transformer and scheduler: VAE, tokenizers, text encoders; float32, frozen."""
    return SimpleNamespace(**ARCHITECTURES[name].parts(folder or DATA / "shared"))


def scheduler(recipe: Recipe) -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=recipe.shift, use_dynamic_shifting=False)


def assemble(recipe: Recipe, transformer: torch.nn.Module, shared: Any) -> Any:
    """The recipe's diffusers pipeline, of a trained transformer and its other parts."""
    family = ARCHITECTURES[recipe.name]
    kind = working_at(SIZE) if family.pipeline == "QwenImageEditPipeline" else getattr(diffusers, family.pipeline)
    pipe = kind(scheduler=scheduler(recipe), transformer=transformer.eval(), **vars(shared))
    pipe.default_sample_size = SIZE // pipe.vae_scale_factor  # else diffusers draws 128 latents a side
    family.fit(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def working_at(side: int) -> type:
    """QwenImageEditPipeline whose source images are brought to side x side pixels, where the stock one says 1024.

    The size is a number inside the stock `__call__`; its code runs here with the one function that is given that
    number replaced, and is otherwise the library's.
    """
    stock = diffusers.QwenImageEditPipeline
    code = inspect.unwrap(stock.__call__)
    module = dict(code.__globals__)
    dimensions = module["calculate_dimensions"]
    module["calculate_dimensions"] = lambda target_area, ratio: dimensions(side * side, ratio)
    call = types.FunctionType(code.__code__, module, code.__name__, code.__defaults__, code.__closure__)
    call.__kwdefaults__, call.__doc__ = code.__kwdefaults__, code.__doc__
    body = {"__call__": torch.no_grad()(call), "__module__": stock.__module__, "__qualname__": stock.__qualname__}
    return type(stock.__name__, (stock,), body)


def export(recipe: Recipe, transformer: torch.nn.Module, folder: Path) -> None:
    """Write a trained transformer (float16, packed) and its scheduler under `folder`, as the zoo ships them."""
    storage.pack(transformer, folder / "transformer")
    scheduler(recipe).save_pretrained(folder / "scheduler")


def load_transformer(name: str, root: Path) -> torch.nn.Module:
    """The transformer of zoo pipeline `name` saved under `root`, in float32."""
    return storage.load(getattr(diffusers, ARCHITECTURES[name].transformer), root / "transformer")


def load(name: str, folder: str | Path | None = None) -> Any:
    """A pipeline of the first edition; see `loading.load`."""
    if name not in RECIPES:
        raise ValueError(f"unknown zoo pipeline {name!r}; there are: {', '.join(RECIPES)}")
    root = Path(folder) if folder is not None else DATA / name
    return assemble(RECIPES[name], load_transformer(name, root), parts(name))


def card(name: str) -> dict[str, Any]:
    """The machine-readable part of a pipeline's model card."""
    return json.loads((DATA / name / "card.json").read_text())
