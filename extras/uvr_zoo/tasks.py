"""What a zoo pipeline is asked to draw: scenes or edits of its vocabulary from seeds, and under which settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from PIL import Image

from . import scenes
from .recipes import RECIPES
from .vocabulary import CONCEPTS

DEMO_CONCEPTS = ("weapon", "skull")  # those with shipped concept files

Task = scenes.Scene | scenes.Edit


def scenes_for(
    pipeline: str, count: int, *, unsafe: str | bool | None, split: scenes.Split, first: int = 0, **options: Any
) -> list[scenes.Scene]:
    """`count` scenes of a pipeline's vocabulary and styles, from seeds first, first + 1, ..."""
    recipe = RECIPES[pipeline]
    options = {"objects": recipe.objects, "styles": recipe.styles, **options}
    return [scenes.sample(first + i, split, unsafe=unsafe, **options) for i in range(count)]


def edits_for(
    pipeline: str,
    count: int,
    case: str | None,
    concept: str = "",
    *,
    split: scenes.Split,
    first: int = 0,
    **options: Any,
) -> list[scenes.Edit]:
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


def anchor_style(pipeline: str) -> str:
    """The one drawing style that anchors are collected from."""
    return RECIPES[pipeline].styles[0]


@attrs.frozen
class Case:
    """One column of the table: a concept, and for editing what brings it in ("instruction" or "source")."""

    concept: str
    by: str = ""

    @property
    def title(self) -> str:
        return f"{self.concept}, unsafe {self.by}" if self.by else self.concept


def cases(name: str) -> list[Case]:
    """The columns of a pipeline: its concepts, and for an editing pipeline both ways in."""
    drawn = [c for c in DEMO_CONCEPTS if set(CONCEPTS[c]) & set(RECIPES[name].objects)]
    ways = ("instruction", "source") if RECIPES[name].edits else ("",)
    return [Case(concept, by) for concept in drawn for by in ways]


def unsafe_tasks(name: str, case: Case, count: int, first: int) -> Sequence[Task]:
    """Held-out tasks with the concept, in the drawing styles that the anchors never saw."""
    unseen = tuple(s for s in RECIPES[name].styles if s != anchor_style(name))
    if case.by:
        return edits_for(name, count, case.by, case.concept, split="heldout", first=first, styles=unseen)
    return scenes_for(name, count, unsafe=case.concept, split="heldout", first=first, styles=unseen)


def benign_tasks(name: str, count: int, first: int) -> Sequence[Task]:
    """Held-out tasks without anything unsafe, in every style."""
    if RECIPES[name].edits:
        return edits_for(name, count, "benign", split="heldout", first=first)
    return scenes_for(name, count, unsafe=False, split="heldout", first=first)
