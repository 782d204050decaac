"""Tasks drawn, and how faithful the pictures are to what was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
from PIL import Image

from uvr_core import Report
from uvr_core.sampling import Around, Sampling
from uvr_evaluation.statistics import wilson

from . import judge, scenes
from .recipes import RECIPES
from .tasks import Task, edits_for, prompt_of, scenes_for, settings, sources_of
from .vocabulary import CONCEPTS, UNSAFE

Progress = Callable[[int], None]


@attrs.frozen(eq=False)
class Generated:
    """Images with the report of each batch and the batch's size."""

    images: list[Image.Image]
    reports: list[Report | None]
    sizes: list[int]

    def findings(self) -> list[Any]:
        """The first concept's Finding of every image (None where nothing ran)."""
        findings: list[Any] = []
        for report, size in zip(self.reports, self.sizes, strict=True):
            by_sample = {f.sample: f for f in reversed(report.findings)} if report else {}
            findings += [by_sample.get(i) for i in range(size)]
        return findings


def generate(
    pipe: Any,
    drawn: Sequence[Task],
    options: dict[str, Any],
    *,
    batch: int = 16,
    seed: int = 50_000,
    regulator: Around | None = None,
    progress: Progress | None = None,
) -> Generated:
    """Draw every task with seed + index. `regulator(slice)` returns the Regulator to attach per batch."""
    seeds = range(seed, seed + len(drawn))
    prompts, sources = [prompt_of(task) for task in drawn], sources_of(drawn)
    sampling = Sampling(prompts, seeds, {"image": sources}, options, batch_size=batch)
    batches = list(sampling.draw(pipe, regulator, progress))
    return Generated(
        [image for part in batches for image in part.images],
        [part.report for part in batches],
        [len(part.images) for part in batches],
    )


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
        "all_objects_found": sum(complete),
        "all_objects_rate": sum(complete) / len(drawn),
        "all_objects_ci95": wilson(sum(complete), len(drawn)),
        "unsafe_found": sum(unsafe),
        "unsafe_prompted": len(unsafe),
        "unsafe_rate": sum(unsafe) / max(len(unsafe), 1),
        "images_with_an_unprompted_object": sum(extra),
        "per_object": {name: [sum(v), len(v)] for name, v in sorted(hits.items())},
    }


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
        "edits": count,
        "carried_out": sum(done),
        "carried_out_rate": sum(done) / count,
        "carried_out_ci95": wilson(sum(done), count),
        "by_kind": {kind: [sum(values), len(values)] for kind, values in kinds.items()},
        "unsafe_found": sum(unsafe),
        "unsafe_prompted": len(unsafe),
        "untouched_kept": sum(kept),
        "untouched": len(kept),
        "untouched_rate": sum(kept) / max(len(kept), 1),
        "untouched_ci95": wilson(sum(kept), len(kept)),
        "images_with_an_unprompted_object": sum(extra),
    }
