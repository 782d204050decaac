"""Prompts, generations and figures that the demo, the fidelity gate and the concept banks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image

from uvr_core import Report
from uvr_core.statistics import wilson

from . import judge, scenes
from .recipes import RECIPES
from .world import CONCEPTS, UNSAFE

Progress = Callable[[int], None]


def scenes_for(
    pipeline: str, count: int, *, unsafe: str | bool | None, split: scenes.Split, first: int = 0, **options: Any
) -> list[scenes.Scene]:
    """`count` scenes of a pipeline's vocabulary and styles, from seeds first, first + 1, ..."""
    recipe = RECIPES[pipeline]
    options = {"objects": recipe.objects, "styles": recipe.styles, **options}
    return [scenes.sample(first + i, split, unsafe=unsafe, **options) for i in range(count)]


def settings(pipeline: str) -> dict[str, Any]:
    """Keyword arguments of the pipeline call under which the zoo's figures are taken."""
    return {"height": scenes.SIZE, "width": scenes.SIZE, **RECIPES[pipeline].sampling}


@attrs.frozen(eq=False)
class Generated:
    """Images with the report of each batch and the batch's size."""

    images: list[Image.Image]
    reports: list[Report | None]
    sizes: list[int]

    def findings(self) -> list[Any]:
        """The first concept's Finding of every image (None where nothing ran)."""
        found: list[Any] = []
        for report, size in zip(self.reports, self.sizes, strict=True):
            by_sample = {f.sample: f for f in reversed(report.findings)} if report else {}
            found += [by_sample.get(i) for i in range(size)]
        return found


def generate(
    pipe: Any, drawn: Sequence[scenes.Scene], options: dict[str, Any], *, batch: int = 16, seed: int = 50_000,
    regulator: Callable[[slice], Any] | None = None, progress: Progress | None = None,
) -> Generated:  # fmt: skip
    """Draw every scene's caption with seed + index. `regulator(slice)` returns the Regulator to attach per batch."""
    images: list[Image.Image] = []
    reports, sizes = [], []
    for start in range(0, len(drawn), batch):
        part = slice(start, min(start + batch, len(drawn)))
        captions = [s.caption for s in drawn[part]]
        extra = {"negative_prompt": [""] * len(captions)} if options.get("true_cfg_scale", 1) > 1 else {}
        generators = [torch.Generator().manual_seed(seed + i) for i in range(part.start, part.stop)]
        reg = regulator(part) if regulator is not None else None
        try:
            images += pipe(captions, generator=generators, **extra, **options).images
            reports.append(reg.report if reg is not None else None)
        finally:
            if reg is not None:
                reg.detach()
        sizes.append(len(captions))
        if progress is not None:
            progress(len(captions))
    return Generated(images, reports, sizes)


def fidelity(
    pipe: Any, pipeline: str, count: int = 400, progress: Progress | None = None, first: int = 0
) -> dict[str, Any]:
    """Prompt fidelity on held-out prompts: how often the judge finds every prompted object.

    Half the prompts ask for an unsafe object. Counts come with the rates; `per_object` is the share found.
    """
    half = count // 2
    drawn = scenes_for(pipeline, half, unsafe=None, split="heldout", first=first)
    unsafe_names = [c for c, members in CONCEPTS.items() if set(members) & set(RECIPES[pipeline].objects)]
    for index, concept in enumerate(unsafe_names):
        share = (count - half) // len(unsafe_names) + (index < (count - half) % len(unsafe_names))
        drawn += scenes_for(pipeline, share, unsafe=concept, split="heldout", first=first + 5_000 * (index + 1))
    images = generate(pipe, drawn, settings(pipeline), progress=progress).images
    seen = judge()(images)
    complete = [all(item.name in s for item in scene.items) for scene, s in zip(drawn, seen, strict=True)]
    hits: dict[str, list[bool]] = {}
    for scene, s in zip(drawn, seen, strict=True):
        for item in scene.items:
            hits.setdefault(item.name, []).append(item.name in s)
    unsafe = [h for name, values in hits.items() if name in UNSAFE for h in values]
    extra = [bool(set(s) - {i.name for i in scene.items}) for scene, s in zip(drawn, seen, strict=True)]
    return {
        "prompts": len(drawn),
        "all_objects_found": sum(complete), "all_objects_rate": sum(complete) / len(drawn),
        "all_objects_ci95": wilson(sum(complete), len(drawn)),
        "unsafe_found": sum(unsafe), "unsafe_prompted": len(unsafe), "unsafe_rate": sum(unsafe) / max(len(unsafe), 1),
        "images_with_an_unprompted_object": sum(extra),
        "per_object": {name: [sum(v), len(v)] for name, v in sorted(hits.items())},
    }  # fmt: skip


def sheet(rows: Sequence[Sequence[Image.Image]], scale: int = 2, gap: int = 4) -> Image.Image:
    """Rows of equally large images on white."""
    width, height = (side * scale for side in rows[0][0].size)
    columns = max(len(row) for row in rows)
    page = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + gap) + gap), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            page.paste(
                image.resize((width, height), Image.Resampling.LANCZOS),
                (gap + x * (width + gap), gap + y * (height + gap)),
            )
    return page


def overlay(image: Image.Image, core: np.ndarray | None, colour: tuple[int, int, int] = (255, 0, 80)) -> Image.Image:
    """The picture with the patches of `core` (H, W) bool tinted."""
    if core is None or not core.any():
        return image
    block = np.kron(core, np.ones((image.height // core.shape[0], image.width // core.shape[1]))) > 0
    pixels = np.asarray(image.convert("RGB")).astype(float)
    pixels[block] = 0.5 * pixels[block] + 0.5 * np.asarray(colour)
    return Image.fromarray(pixels.astype(np.uint8))
