"""How well a free-form pipeline draws what it is told: held-out prompts, a judge at any canvas, Wilson intervals.

The first judge was trained on 64 x 64 pixels; its network is convolutional and reads larger canvases unresized.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from PIL import Image

from uvr_core.sampling import Sampling
from uvr_evaluation.statistics import wilson

from ..judging import Judge
from .captions import PlaceKind, caption
from .pool import Mix
from .scenes import Scene, sample
from .wordings import Kind

FIRST_SEED = 1_000_000  # gates use seeds from here on; tuning and published counts have ranges of their own


@attrs.frozen
class Task:
    """A prompt with the scene that it was written for."""

    scene: Scene
    prompt: str
    seed: int


def tasks(
    mix: Mix, count: int, number: int, *, kind: Kind = "name", place: PlaceKind = "none", first: int = FIRST_SEED
) -> list[Task]:
    """`number` held-out scenes of `count` objects each, in held-out wordings of a kind; `place`: what they say of
    it."""
    drawn = [
        sample(seed, "heldout", objects=mix.objects, styles=mix.styles, count=count, busy=mix.busy)
        for seed in range(first, first + number)
    ]
    prompts = [caption(scene, kind=kind, place=place, split="heldout").text for scene in drawn]
    return [Task(scene, prompt, scene.seed) for scene, prompt in zip(drawn, prompts, strict=True)]


def draw(pipe: Any, prompted: Sequence[Task], batch: int = 16, **call: Any) -> list[Image.Image]:
    """One picture a task, each from its own seed; `call`: the pipeline call's other arguments."""
    sampling = Sampling([task.prompt for task in prompted], [task.seed for task in prompted], {}, call, batch)
    return [image for part in sampling.draw(pipe) for image in part.images]


def score(judge: Judge, mix: Mix, prompted: list[Task], images: list[Image.Image]) -> dict[str, Any]:
    """How many pictures show every object of their scene, how many those alone of the mix's, with 95% intervals."""
    complete = exact = 0
    shown: dict[str, list[int]] = {}
    unresized = Judge(judge.net, judge.threshold, judge.card, side=None)
    for task, told in zip(prompted, unresized(images), strict=True):
        names = set(told)
        wanted = {item.name for item in task.scene.items}
        complete += wanted <= names
        exact += wanted == names & set(mix.objects)
        for name in wanted:
            row = shown.setdefault(name, [0, 0])
            row[0] += name in names
            row[1] += 1
    total = len(prompted)
    return {
        "prompts": total,
        "all_objects": complete,
        "all_objects_ci95": wilson(complete, total),
        "exactly": exact,
        "per_object": dict(sorted(shown.items())),
    }


def sheet(images: Sequence[Image.Image], path: Path, columns: int = 12) -> None:
    """One picture of all, row by row."""
    side = images[0].size
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * side[0], rows * side[1]))
    for index, image in enumerate(images):
        canvas.paste(image, (index % columns * side[0], index // columns * side[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)
