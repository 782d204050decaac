"""The second judge: its network at any canvas, its labels, its groups, and a training step that learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from uvr_core.plugins import registry
from uvr_zoo import judge
from uvr_zoo import scenes as first_scenes
from uvr_zoo.freeform import second_judge
from uvr_zoo.freeform.render import render
from uvr_zoo.freeform.scenes import Item, Scene
from uvr_zoo.judging import Judge
from uvr_zoo.training import Run
from uvr_zoo.vocabulary import OBJECTS

HELD = Scene((Item("dog", 0.5, 0.5, 40), Item("knife", 0.55, 0.5, 22)), "holds", "snow", "toy", 0)


@pytest.mark.parametrize("canvas", [(64, 64), (96, 64), (96, 96)])
def test_it_reads_any_canvas(canvas: tuple[int, int]) -> None:
    objects, cells = second_judge.SecondNet()(torch.zeros(2, 3, *canvas))
    assert objects.shape == (2, len(OBJECTS))
    assert cells.shape == (2, len(OBJECTS) + 1, canvas[0] // 4, canvas[1] // 4)


def test_labels_say_what_each_cell_shows() -> None:
    _, masks = render(HELD)
    objects, cells = second_judge.labels(masks, HELD)
    assert {OBJECTS[i] for i in np.flatnonzero(objects)} == {"dog", "knife"}
    for index, item in enumerate(HELD.items):
        shown = cells == OBJECTS.index(item.name) + 1
        inside = np.stack([masks[index][row::4, column::4] for row in range(4) for column in range(4)])
        assert shown.sum() > 3
        assert inside.mean(0)[shown].min() >= 0.3
        if index:  # nothing covers it
            assert inside.mean(0)[~shown].max() < 0.3


def test_groups_tell_small_held_overlapped_and_cut() -> None:
    _, masks = render(HELD)
    groups = second_judge.groups_of(HELD, masks)
    assert groups["small"] == {"knife"}
    assert groups["held"] == {"knife"}
    assert groups["overlapped"] == {"dog"}
    assert groups["cut"] == set()
    assert groups["all"] == {"dog", "knife"}
    edge = Scene((Item("cat", 0.02, 0.5, 40),), "apart", "snow", "toy", 0)
    assert second_judge.groups_of(edge, render(edge)[1])["cut"] == {"cat"}


def test_a_few_steps_learn_and_are_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = second_judge.train(tmp_path / "out", Run(0.05, tmp_path / "run"), (), size=4, heldout=50)
    assert first.card["steps"] > 0
    assert first.card["recall"]["all"][1] > first.card["heldout_scenes"]
    again = second_judge.load(tmp_path / "out")
    picture = Image.fromarray(render(HELD)[0])
    near = torch.allclose(again.scores([picture]), first.scores([picture]), atol=0.05)
    assert near, "int8 storage changes scores by more than 0.05"


def test_pictures_of_several_sizes_keep_their_order() -> None:
    torch.manual_seed(0)
    judge = Judge(second_judge.SecondNet(), 0.5, side=None)
    pictures = [Image.fromarray(np.full((side, 64, 3), side, np.uint8)) for side in (64, 96, 96, 64)]
    together = judge.scores(pictures)
    alone = torch.cat([judge.scores([picture]) for picture in pictures])
    assert torch.allclose(together, alone, atol=1e-5)
    assert judge.locate(pictures, ["knife"], (8, 8)).shape == (4, 8, 8)


def test_the_shipped_one_reads_what_the_first_cannot() -> None:
    """Small, held and overlapped objects of free-form scenes; and the first edition's scenes as well as the first."""
    second, first = judge("second"), judge()
    unresized = Judge(first.net, first.threshold, side=None)
    told, before = (second_judge.measure(each, 150, first=1_600_000) for each in (second, unresized))
    assert told["exact"] >= 0.9 * told["heldout_scenes"]
    assert told["exact"] > before["exact"] + 20
    for group in ("small", "held", "overlapped"):
        seen, shown = told["recall"][group]
        assert seen >= 0.6 * shown
        assert seen >= before["recall"][group][0]
    drawn = [first_scenes.sample(seed, "heldout") for seed in range(100)]
    names = second([Image.fromarray(first_scenes.render(scene)[0]) for scene in drawn])
    right = sum({item.name for item in scene.items} == set(one) for scene, one in zip(drawn, names, strict=True))
    assert right >= 97


def test_it_is_a_judge_of_the_registry() -> None:
    assert registry().get("judge", "zoo-second")() is judge("second")
    with pytest.raises(ValueError, match="first, second"):
        judge("third")
