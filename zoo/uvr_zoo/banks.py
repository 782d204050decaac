"""How the zoo's shipped concept banks were made: collect, then calibrate, then write with their provenance.

Anchors come from training-split prompts that name the object plainly and ask for the first drawing style of the
pipeline; no other style, synonym or description is ever shown to them. The judge's location map says where the
object is in each generated image (offline; nothing at run time uses the judge).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

import uvr_core
from uvr_core import ConceptBank

from . import judge
from .experiment import scenes_for, settings
from .recipes import RECIPES
from .world import CONCEPTS

Progress = Callable[[int], None]
UNSAFE_PROMPTS, BENIGN_PROMPTS = 96, 96  # to collect
CALIBRATE_UNSAFE, CALIBRATE_BENIGN = 64, 128  # to calibrate


def anchor_style(pipeline: str) -> str:
    """The one drawing style that anchors are collected from."""
    return RECIPES[pipeline].styles[0]


def mask_source(pipeline: str, concept: str) -> Callable[[Sequence[Any], tuple[int, int]], np.ndarray]:
    """(images, grid) -> patches where the judge sees any object of the concept."""
    names = [name for name in CONCEPTS[concept] if name in RECIPES[pipeline].objects]
    return lambda images, grid: judge().locate(images, names, grid).numpy()


def call_options(pipeline: str, batch: int) -> dict[str, Any]:
    options = settings(pipeline)
    if options.get("true_cfg_scale", 1) > 1:
        options["negative_prompt"] = ""
    return options


def collect(pipe: Any, pipeline: str, concept: str, progress: Progress | None = None) -> ConceptBank:
    """The uncalibrated bank, with every probe candidate."""
    style = (anchor_style(pipeline),)
    unsafe = scenes_for(
        pipeline, UNSAFE_PROMPTS, unsafe=concept, split="train", first=100_000, styles=style, wordings=0.0
    )
    benign = scenes_for(pipeline, BENIGN_PROMPTS, unsafe=False, split="train", first=200_000)
    return uvr_core.collect(
        pipe, concept, prompts=[s.caption for s in unsafe], benign_prompts=[s.caption for s in benign],
        masks=mask_source(pipeline, concept), mask_source="zoo judge, location map", batch_size=16,
        generate=call_options(pipeline, 16), progress=progress,
    )  # fmt: skip


def calibrate(
    pipe: Any,
    pipeline: str,
    bank: ConceptBank,
    *,
    detector: str = "contrast",
    max_false_positive: float = 0.01,
    progress: Progress | None = None,
) -> ConceptBank:
    """Choose probe, window and threshold on further training-split prompts."""
    style = (anchor_style(pipeline),)
    unsafe = scenes_for(
        pipeline, CALIBRATE_UNSAFE, unsafe=bank.name, split="train", first=300_000, styles=style, wordings=0.0
    )
    benign = scenes_for(pipeline, CALIBRATE_BENIGN, unsafe=False, split="train", first=400_000)
    bank = uvr_core.calibrate(
        pipe, bank, [s.caption for s in unsafe], [s.caption for s in benign], max_false_positive, detector=detector,
        masks=mask_source(pipeline, bank.name), batch_size=16, generate=call_options(pipeline, 16), progress=progress,
    )  # fmt: skip
    how = {"made_by": f"uvr zoo concepts {pipeline}", "anchor_style": anchor_style(pipeline), "anchor_split": "train"}
    return attrs.evolve(bank, provenance={**bank.provenance, **how})


def half(bank: ConceptBank) -> ConceptBank:
    """The bank in float16, as it is shipped."""
    keep = {
        name: t if name == "sigma" or name.startswith("offset") else t.to(torch.float16)
        for name, t in bank.tensors.items()
    }
    return attrs.evolve(bank, tensors=keep)


def path(folder: Path, pipeline: str, concept: str) -> Path:
    return folder / f"{pipeline}-{concept}.safetensors"
