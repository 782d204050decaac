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
from uvr_core.engine.lookup import find_adapter

from . import judge
from .recipes import RECIPES
from .tasks import Task, anchor_style, edits_for, prompt_of, scenes_for, settings, sources_of
from .vocabulary import CONCEPTS

Progress = Callable[[int], None]
UNSAFE_PROMPTS, BENIGN_PROMPTS = 128, 256  # to collect
CALIBRATE_UNSAFE, CALIBRATE_BENIGN = 96, 160  # to calibrate
# What is calibrated otherwise. Kontext's weapons lie close to its hats: docs/design/measurements.md.
HARD: dict[tuple[str, str], dict[str, Any]] = {
    ("flux-kontext", "weapon"): {"benign": 1000, "min_patches": 3, "memory": (0.9,), "steps": (15,)},
}


def mask_source(pipeline: str, concept: str) -> Callable[[Sequence[Any], tuple[int, int]], np.ndarray]:
    """(images, grid) -> patches where the judge sees any object of the concept."""
    names = [name for name in CONCEPTS[concept] if name in RECIPES[pipeline].objects]
    return lambda images, grid: judge().locate(images, names, grid).numpy()


def tasks(
    pipeline: str, concept: str, count: int, first: int, *, unsafe: bool, style: str | None = None
) -> Sequence[Task]:
    """Training-split tasks: with the concept in the anchors' style (or another), or without it in every style.

    For an editing pipeline half of the unsafe ones bring the concept by the instruction, half by the source.
    """
    styles = (style or anchor_style(pipeline),)
    if RECIPES[pipeline].edits:
        if not unsafe:
            return edits_for(pipeline, count, "benign", split="train", first=first)
        half = count // 2
        by_instruction = edits_for(pipeline, half, "instruction", concept, split="train", first=first, styles=styles)
        by_source = edits_for(
            pipeline, count - half, "source", concept, split="train", first=first + half, styles=styles
        )
        return [*by_instruction, *by_source]
    options: dict[str, Any] = {"styles": styles, "wordings": 0.0} if unsafe else {}
    return scenes_for(pipeline, count, unsafe=concept if unsafe else False, split="train", first=first, **options)


def collect(
    pipe: Any,
    pipeline: str,
    concept: str,
    progress: Progress | None = None,
    *,
    style: str | None = None,
    shift: int = 0,
) -> ConceptBank:
    """The uncalibrated bank, with every probe candidate.

    Args:
        style: drawing style of the anchors; None: the shipped banks'.
        shift: added to every seed; 0: the shipped banks'.
    """
    unsafe = tasks(pipeline, concept, UNSAFE_PROMPTS, 100_000 + shift, unsafe=True, style=style)
    benign = tasks(pipeline, concept, BENIGN_PROMPTS, 200_000 + shift, unsafe=False)
    return uvr_core.collect(
        pipe,
        concept,
        prompts=[prompt_of(t) for t in unsafe],
        benign_prompts=[prompt_of(t) for t in benign],
        sources=sources_of(unsafe),
        benign_sources=sources_of(benign),
        masks=mask_source(pipeline, concept),
        mask_source="zoo judge, location map",
        batch_size=16,
        generate=settings(pipeline),
        progress=progress,
        seed=shift,
        probes=tuple(find_adapter(pipe.transformer).taps(pipe.transformer)) if RECIPES[pipeline].edits else None,
    )


def options_of(pipeline: str, concept: str) -> dict[str, Any]:
    """How a bank is calibrated: `benign` tasks, and keyword arguments of `uvr_core.calibrate`."""
    usual = {"benign": CALIBRATE_BENIGN, "max_false_positive": 0.015, "memory": (0.0,)}
    return {**usual, **HARD.get((pipeline, concept), {})}


def calibrate(
    pipe: Any,
    pipeline: str,
    bank: ConceptBank,
    *,
    detector: str = "contrast",
    progress: Progress | None = None,
    style: str | None = None,
    shift: int = 0,
) -> ConceptBank:
    """Choose probe, window and threshold on further training-split prompts."""
    unsafe = tasks(pipeline, bank.name, CALIBRATE_UNSAFE, 300_000 + shift, unsafe=True, style=style)
    options = options_of(pipeline, bank.name)
    benign = tasks(pipeline, bank.name, options.pop("benign"), 400_000 + shift, unsafe=False)
    bank = uvr_core.calibrate(
        pipe,
        bank,
        [prompt_of(t) for t in unsafe],
        [prompt_of(t) for t in benign],
        detector=detector,
        sources=sources_of(unsafe),
        benign_sources=sources_of(benign),
        masks=mask_source(pipeline, bank.name),
        batch_size=16,
        generate=settings(pipeline),
        progress=progress,
        **options,
    )
    how = {
        "made_by": f"uvr zoo concepts {pipeline}",
        "anchor_style": style or anchor_style(pipeline),
        "anchor_split": "train",
    }
    return attrs.evolve(bank, provenance={**bank.provenance, **how})


def half(bank: ConceptBank) -> ConceptBank:
    """The bank in float16, as it is shipped."""
    keep = {name: t if name == "sigma" or "offset" in name else t.to(torch.float16) for name, t in bank.tensors.items()}
    return attrs.evolve(bank, tensors=keep)


def path(folder: Path, pipeline: str, concept: str) -> Path:
    return folder / f"{pipeline}-{concept}.safetensors"
