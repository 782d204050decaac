"""Gates of editing: held-out edits, what counts as carried out, and the counts."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from uvr_zoo import judge
from uvr_zoo.freeform import edit_gate
from uvr_zoo.freeform.edits import EDIT_KINDS, EditKind
from uvr_zoo.freeform.pool import Mix
from uvr_zoo.freeform.render import render
from uvr_zoo.freeform.scenes import split_of
from uvr_zoo.recipes import RECIPES

MIX = Mix(RECIPES["flux"].objects, RECIPES["flux"].styles, busy=0.0)


def targets(tasks: list[edit_gate.Task]) -> list[Image.Image]:
    return [Image.fromarray(render(task.edit.target)[0]) for task in tasks]


def test_tasks_are_held_out_and_of_the_kind_that_was_asked_for() -> None:
    tasks = edit_gate.tasks(MIX, 8, source=False, new="weapon", kinds=("add", "turn"))
    assert tasks == edit_gate.tasks(MIX, 8, source=False, new="weapon", kinds=("add", "turn"))
    for task in tasks:
        target = task.edit.target
        assert split_of(tuple(item.name for item in target.items), target.background) == "heldout"
        assert task.edit.kind in ("add", "turn")


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_the_scene_that_was_asked_for_is_carried_out_and_the_source_is_not(kind: EditKind) -> None:
    for task in edit_gate.tasks(MIX, 6, kinds=(kind,)):
        edit = task.edit
        after, before = (render(scene)[0].astype(np.float32) for scene in (edit.target, edit.source))
        names = [[item.name for item in scene.items] for scene in (edit.target, edit.source)]
        assert edit_gate.carried_out(edit, names[0], after)
        assert not edit_gate.carried_out(edit, names[1], before)


def test_counts_of_rendered_targets_and_of_sources() -> None:
    tasks = edit_gate.tasks(MIX, 40)
    done = edit_gate.score(judge(), tasks, targets(tasks))
    assert done["edits"] == sum(of for _, of in done["by_kind"].values()) == 40
    assert done["carried_out"] >= 34
    assert done["untouched_kept"] >= 0.85 * done["untouched"]
    assert done["carried_out_ci95"][0] < done["carried_out"] / 40
    undone = edit_gate.score(judge(), tasks, [edit_gate.picture(task.edit) for task in tasks])
    assert undone["carried_out"] <= 6
    assert undone["unsafe_brought"] <= undone["unsafe_asked"]
