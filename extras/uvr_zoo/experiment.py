"""Prompts, generations and figures that the demo, the fidelity gate and the concept banks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image

from uvr_core import Report
from uvr_evaluation.statistics import wilson

from . import judge, scenes
from .recipes import RECIPES
from .vocabulary import CONCEPTS, UNSAFE

Progress = Callable[[int], None]


Task = scenes.Scene | scenes.Edit


def scenes_for(
    pipeline: str, count: int, *, unsafe: str | bool | None, split: scenes.Split, first: int = 0, **options: Any
) -> list[scenes.Scene]:
    """`count` scenes of a pipeline's vocabulary and styles, from seeds first, first + 1, ..."""
    recipe = RECIPES[pipeline]
    options = {"objects": recipe.objects, "styles": recipe.styles, **options}
    return [scenes.sample(first + i, split, unsafe=unsafe, **options) for i in range(count)]


def edits_for(
    pipeline: str, count: int, case: str | None, concept: str = "", *, split: scenes.Split, first: int = 0,
    **options: Any,
) -> list[scenes.Edit]:  # fmt: skip
    """`count` editing tasks, from seeds first, first + 1, ...

    Args:
        case: "instruction": a benign source and an instruction that asks for the concept; "source": a source that
            shows the concept and an instruction that does not touch it; "benign": neither source nor result shows
            anything unsafe; None: no matter.
    """
    recipe = RECIPES[pipeline]
    options = {"objects": recipe.objects, "styles": recipe.styles, **options}
    if case == "instruction":
        options |= {"source": False, "new": concept, "kinds": ("add", "replace")}
    elif case == "source":
        options |= {"source": concept, "new": False}
    elif case == "benign":
        options |= {"source": False, "new": False}
    return [scenes.sample_edit(first + i, split, **options) for i in range(count)]


def shown(task: Task) -> scenes.Scene:
    """The scene that the result should show."""
    return task.target if isinstance(task, scenes.Edit) else task


def prompt_of(task: Task) -> str:
    return task.instruction if isinstance(task, scenes.Edit) else task.caption


def source_of(task: Task) -> Image.Image | None:
    """The picture to be edited."""
    return Image.fromarray(scenes.render(task.source)[0]) if isinstance(task, scenes.Edit) else None


def sources_of(tasks: Sequence[Task]) -> list[Image.Image] | None:
    pictures = [picture for task in tasks if (picture := source_of(task)) is not None]
    return pictures or None


def settings(pipeline: str) -> dict[str, Any]:
    """Keyword arguments of the pipeline call under which the zoo's figures are taken."""
    options = {"height": scenes.SIZE, "width": scenes.SIZE, **RECIPES[pipeline].sampling}
    return {**options, "negative_prompt": ""} if options.get("true_cfg_scale", 1) > 1 else options


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
    pipe: Any, drawn: Sequence[Task], options: dict[str, Any], *, batch: int = 16, seed: int = 50_000,
    regulator: Callable[[slice], Any] | None = None, progress: Progress | None = None,
) -> Generated:  # fmt: skip
    """Draw every task with seed + index. `regulator(slice)` returns the Regulator to attach per batch."""
    images: list[Image.Image] = []
    reports, sizes = [], []
    for start in range(0, len(drawn), batch):
        part = slice(start, min(start + batch, len(drawn)))
        prompts, sources = [prompt_of(task) for task in drawn[part]], sources_of(drawn[part])
        call = {"prompt": prompts, **options, **({} if sources is None else {"image": sources})}
        if "negative_prompt" in call:
            call["negative_prompt"] = [call["negative_prompt"]] * len(prompts)
        generators = [torch.Generator().manual_seed(seed + i) for i in range(part.start, part.stop)]
        reg = regulator(part) if regulator is not None else None
        try:
            images += pipe(generator=generators, **call).images
            reports.append(reg.report if reg is not None else None)
        finally:
            if reg is not None:
                reg.detach()
        sizes.append(len(prompts))
        if progress is not None:
            progress(len(prompts))
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


def edit_fidelity(
    pipe: Any, pipeline: str, count: int = 400, progress: Progress | None = None, first: int = 0
) -> dict[str, Any]:
    """How often held-out edits are carried out, and the source's untouched objects stay. Counts and rates."""
    drawn = edits_for(pipeline, count, None, split="heldout", first=first)
    images = generate(pipe, drawn, settings(pipeline), progress=progress).images
    seen = judge()(images)
    done = [edit.carried_out(s, np.asarray(im)) for edit, s, im in zip(drawn, seen, images, strict=True)]
    kept = [name in s for edit, s in zip(drawn, seen, strict=True) for name in edit.untouched]
    extra = [bool(set(s) - {i.name for i in edit.target.items}) for edit, s in zip(drawn, seen, strict=True)]
    kinds = {k: [d for e, d in zip(drawn, done, strict=True) if e.kind == k] for k in scenes.EDIT_KINDS}
    unsafe = [d for e, d in zip(drawn, done, strict=True) if e.new in UNSAFE]
    return {
        "edits": count, "carried_out": sum(done), "carried_out_rate": sum(done) / count,
        "carried_out_ci95": wilson(sum(done), count),
        "by_kind": {kind: [sum(values), len(values)] for kind, values in kinds.items()},
        "unsafe_found": sum(unsafe), "unsafe_prompted": len(unsafe),
        "untouched_kept": sum(kept), "untouched": len(kept), "untouched_rate": sum(kept) / max(len(kept), 1),
        "untouched_ci95": wilson(sum(kept), len(kept)), "images_with_an_unprompted_object": sum(extra),
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
