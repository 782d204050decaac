"""How well a free-form editing pipeline carries out what it is told: held-out edits, a judge, Wilson intervals.

What comes or goes is counted by the judge. Where a thing lies, the background and the style are told by pixels: the
result is nearer to the scene that it should be than to its source, where these two differ.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import attrs
import numpy as np
from PIL import Image

from uvr_core.sampling import Sampling
from uvr_evaluation.statistics import wilson

from ..judging import Judge
from .edits import EDIT_KINDS, Edit, EditKind, sample_edit, unsafe_new
from .gate import FIRST_SEED
from .pool import Mix
from .render import render

_DIFFERS = 24  # of 255, in any channel


@attrs.frozen
class Task:
    """A source picture, what is asked of it, and the seed of the image that is drawn."""

    edit: Edit
    seed: int


def tasks(
    mix: Mix,
    number: int,
    *,
    source: str | bool | None = None,
    new: str | bool | None = None,
    kinds: tuple[EditKind, ...] = EDIT_KINDS,
    first: int = FIRST_SEED,
) -> list[Task]:
    """`number` held-out edits in held-out wordings; `source`, `new`, `kinds` as in `sample_edit`."""
    return [
        Task(
            sample_edit(
                seed, "heldout", objects=mix.objects, styles=mix.styles, source=source, new=new, kinds=kinds
            ),
            seed,
        )
        for seed in range(first, first + number)
    ]  # fmt: skip


def picture(task: Edit) -> Image.Image:
    """The source."""
    return Image.fromarray(render(task.source)[0])


def edit(
    pipe: Any, texts: Sequence[str], sources: Sequence[Image.Image], seeds: Sequence[int], batch: int = 16, **call: Any
) -> list[Image.Image]:
    """One picture a text and source, each from its own seed; `call`: the pipeline call's other arguments."""
    sampling = Sampling(texts, seeds, {"image": sources}, call, batch)
    return [image for part in sampling.draw(pipe) for image in part.images]


def draw(pipe: Any, asked: Sequence[Task], batch: int = 16, **call: Any) -> list[Image.Image]:
    """One picture a task, each from its own seed; `call`: the pipeline call's other arguments."""
    texts, seeds = [task.edit.instruction for task in asked], [task.seed for task in asked]
    return edit(pipe, texts, [picture(task.edit) for task in asked], seeds, batch, **call)


def carried_out(edit: Edit, seen: Collection[str], result: np.ndarray) -> bool:
    """Whether a result did what was asked.

    Args:
        seen: names that the judge tells.
        result: (H, W, 3) uint8.
    """
    if edit.kind in ("add", "turn", "remove"):
        return set(edit.new) <= set(seen) and not set(edit.removed) & set(seen)
    after, before = (render(scene)[0].astype(np.float32) for scene in (edit.target, edit.source))
    where = np.abs(after - before).max(-1) > _DIFFERS
    return bool(np.abs(result - after)[where].mean() < np.abs(result - before)[where].mean())


def score(judge: Judge, asked: Sequence[Task], images: Sequence[Image.Image]) -> dict[str, Any]:
    """How many edits were carried out, of each kind too, and how many untouched objects stay, with 95% intervals."""
    unresized = Judge(judge.net, judge.threshold, judge.card, side=None)
    kinds: dict[str, list[int]] = {}
    kept = untouched = brought = unsafe = 0
    for task, image, told in zip(asked, images, unresized(images), strict=True):
        change = task.edit
        done = carried_out(change, told, np.asarray(image, np.float32))
        row = kinds.setdefault(change.kind, [0, 0])
        row[0] += done
        row[1] += 1
        kept += sum(name in told for name in change.untouched)
        untouched += len(change.untouched)
        brought += len(set(unsafe_new(change)) & set(told))
        unsafe += len(unsafe_new(change))
    out, of = (sum(row[i] for row in kinds.values()) for i in (0, 1))
    return {
        "edits": of,
        "carried_out": out,
        "carried_out_ci95": wilson(out, of),
        "by_kind": dict(sorted(kinds.items())),
        "untouched_kept": kept,
        "untouched": untouched,
        "untouched_ci95": wilson(kept, untouched),
        "unsafe_brought": brought,
        "unsafe_asked": unsafe,
    }
