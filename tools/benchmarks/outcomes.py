"""What the parts of the robustness page share: tasks that ask for a concept, and what became of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from PIL import Image

import uvr_zoo
from uvr_core import ConceptBank
from uvr_evaluation.statistics import paired_difference, rate
from uvr_evaluation.summary import Outcome, tally
from uvr_zoo import judge
from uvr_zoo.experiment import Generated
from uvr_zoo.recipes import RECIPES
from uvr_zoo.sheets import sheet
from uvr_zoo.tasks import Task, anchor_style, settings, shown
from uvr_zoo.vocabulary import CONCEPTS

FIRST_SEED = 820_000
IMAGE_SEED = 830_000  # picture i of a table is drawn with IMAGE_SEED + i
ASKED = ("weapon", "skull")

pipeline = functools.cache(uvr_zoo.load)


class Pictures:
    """Contact sheets, if a folder is given: each call writes the next one."""

    def __init__(self, folder: Path | None, part: str):
        self.folder, self.part, self.number = folder, part, 0

    def __call__(self, rows: Sequence[Sequence[Image.Image]]) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            sheet(rows, scale=1).save(self.folder / f"{self.part}-{self.number:02d}.png")
        self.number += 1


@attrs.frozen
class Plan:
    """How much is measured, and where it is kept.

    Attributes:
        count: tasks a row. queries: of the prompt search, a start.
        work: folder of what a cut run goes on from; again: begin it anew.
        pictures: writes contact sheets.
    """

    count: int
    queries: int
    work: Path
    again: bool
    pictures: Pictures


@functools.cache
def shipped(name: str) -> tuple[ConceptBank, ...]:
    return tuple(uvr_zoo.concepts(name, concept) for concept in ASKED)


def unseen(name: str) -> tuple[str, ...]:
    return tuple(style for style in RECIPES[name].styles if style != anchor_style(name))


def concept_of(task: Task) -> str:
    """The concept that a task's unsafe object belongs to."""
    return next(concept for concept in ASKED if set(shown(task).unsafe) & set(CONCEPTS[concept]))


def members_of(task: Task) -> frozenset[str]:
    """The objects of that concept."""
    return frozenset(CONCEPTS[concept_of(task)])


def others_of(task: Task, members: frozenset[str]) -> list[str]:
    """The objects that a task asks for beside."""
    return [item.name for item in shown(task).items if item.name not in members]


def draw(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], **more: Any) -> list[Image.Image]:
    """One batch of the flux pipeline under the zoo's settings."""
    call = {**settings("flux"), "negative_prompt": [""] * len(prompts), **more}
    return pipe(list(prompts), generator=[torch.Generator().manual_seed(s) for s in seeds], **call).images


def outcome(
    tasks: Sequence[Task], wanted: Sequence[frozenset[str]], stock: Generated, regulated: Generated
) -> dict[str, Any]:
    """What became of tasks that ask for a concept; `wanted`: per task the objects of that concept. See `figures`."""
    before, after = judge()(stock.images), judge()(regulated.images)
    outcomes = [
        Outcome.of(members, others_of(task, members), b, a)
        for task, members, b, a in zip(tasks, wanted, before, after, strict=True)
    ]
    located = [
        report.located(i)
        for report, size in zip(regulated.reports, regulated.sizes, strict=True)
        if report is not None
        for i in range(size)
    ]
    drop = paired_difference([one.before for one in outcomes], [one.after for one in outcomes])
    return figures(tally(outcomes), rate(sum(located), len(tasks)), drop)


def figures(counts: Mapping[str, Any], located: Mapping[str, Any], drop: tuple[float, float, float]) -> dict[str, Any]:
    """A row of a table, every rate with counts and Wilson's 95% interval.

    "stock", "regulated": pictures that show the concept, of all; "erased": of those that stock shows; "located":
    pictures in which any concept was located, of all; "kept": other prompted objects still there, of those that stock
    shows; "drop": stock minus regulated with its paired bootstrap interval.
    """
    return {
        "stock": counts["stock_shown"],
        "regulated": counts["left"],
        "erased": counts["erased"],
        "located": located,
        "kept": counts["kept"],
        "drop": drop,
    }
