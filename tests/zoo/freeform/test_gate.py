"""Gates: held-out tasks, what the judge sees at other sizes, and the counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from uvr_zoo import judge
from uvr_zoo.freeform import gate
from uvr_zoo.freeform.pool import Mix
from uvr_zoo.freeform.render import render
from uvr_zoo.freeform.scenes import split_of
from uvr_zoo.recipes import RECIPES

MIX = Mix(RECIPES["flux"].objects, RECIPES["flux"].styles, busy=0.0)


def test_tasks_are_held_out_combinations_without_a_place() -> None:
    tasks = gate.tasks(MIX, 2, 20)
    assert tasks == gate.tasks(MIX, 2, 20)
    assert len({task.seed for task in tasks}) == 20
    for task in tasks:
        assert split_of(tuple(item.name for item in task.scene.items), task.scene.background) == "heldout"
        assert not {"left", "right", "corner", "top", "bottom"} & set(task.prompt.split())


@pytest.mark.parametrize("count", [1, 2])
def test_rendered_scenes_pass_the_gate(count: int) -> None:
    tasks = [task for task in gate.tasks(MIX, count, 60) if task.scene.relation == "apart"][:40]
    figures = gate.score(judge(), MIX, tasks, [Image.fromarray(render(task.scene)[0]) for task in tasks])
    assert figures["all_objects"] >= 0.85 * figures["prompts"]
    assert figures["all_objects_ci95"][0] < figures["all_objects"] / figures["prompts"] < 1.0001


def test_other_pictures_do_not() -> None:
    tasks = gate.tasks(MIX, 1, 20)
    images = [Image.fromarray(render(task.scene)[0]) for task in tasks]
    figures = gate.score(judge(), MIX, tasks, images[1:] + images[:1])
    assert figures["all_objects"] <= 8
    assert figures["exactly"] <= figures["all_objects"]


def test_a_sheet_holds_every_picture(tmp_path: Path) -> None:
    gate.sheet([Image.new("RGB", (8, 8), (index, 0, 0)) for index in range(5)], tmp_path / "a" / "sheet.png", columns=3)
    with Image.open(tmp_path / "a" / "sheet.png") as image:
        assert image.size == (24, 16)
        assert image.getpixel((8, 8)) == (4, 0, 0)
