"""Free-form scenes: drawn from a seed, as told, everything visible."""

import numpy as np
import pytest

from uvr_zoo.freeform import scenes
from uvr_zoo.freeform.render import object_patches, render
from uvr_zoo.vocabulary import BENIGN, CONCEPTS


def test_a_scene_is_a_function_of_split_and_seed():
    assert scenes.sample(5) == scenes.sample(5)
    assert scenes.sample(5) != scenes.sample(5, "heldout")


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_combination_belongs_to_its_split(split):
    for seed in range(60):
        scene = scenes.sample(seed, split)
        assert scenes.split_of(tuple(item.name for item in scene.items), scene.background) == split


def test_a_concept_is_drawn_once_among_benign_objects():
    for seed in range(40):
        names = [item.name for item in scenes.sample(seed, unsafe="weapon", count=3).items]
        assert sum(name in CONCEPTS["weapon"] for name in names) == 1
        assert sum(name in BENIGN for name in names) == 2


def test_unknown_concepts_and_objects_without_one_are_refused():
    with pytest.raises(ValueError, match="unknown concept 'wepon'"):
        scenes.sample(0, unsafe="wepon")
    with pytest.raises(ValueError, match="none of the objects is of concept 'skull'"):
        scenes.sample(0, unsafe="skull", objects=("cat", "knife"))


@pytest.mark.parametrize("canvas", [(96, 96), (64, 64), (64, 96), (96, 64)])
def test_pictures_have_the_canvas_and_every_object_shows(canvas):
    for seed in range(40):
        scene = scenes.sample(seed, canvas=canvas)
        image, masks = render(scene)
        assert image.shape == (*canvas, 3)
        assert image.dtype == np.uint8
        assert sorted(masks) == list(range(len(scene.items)))
        assert all(mask.sum() >= 20 for mask in masks.values())
        assert np.sum(list(masks.values()), axis=0).max() == 1  # a pixel shows one object


def test_masks_are_what_an_object_changes():
    scene = next(s for s in map(scenes.sample, range(50)) if len(s.items) == 1 and s.background == "snow")
    alone, masks = render(scene)
    nothing, _ = render(scenes.Scene((), "apart", scene.background, scene.style, scene.seed))
    changed = (alone.astype(int) != nothing).any(-1)
    assert (changed & masks[0]).sum() >= 0.95 * masks[0].sum()
    assert (changed & ~masks[0]).sum() <= 0.5 * masks[0].sum()  # the sprite's soft rim


def test_objects_lie_anywhere_and_are_cut_by_the_edge():
    items = [item for seed in range(400) for item in scenes.sample(seed).items]
    columns = np.histogram([item.x for item in items], bins=4, range=(0, 1))[0]
    assert columns.min() > 0.5 * columns.max()
    boxes = [scenes.box(item, scenes.CANVAS) for item in items]
    assert 0.02 < np.mean([min(b[:2]) < 0 or max(b[2:]) > 96 for b in boxes]) < 0.4


def test_what_is_held_is_smaller_and_touches_its_holder():
    held = [s for s in map(scenes.sample, range(600)) if s.relation == "holds"]
    assert len(held) > 10
    for scene in held:
        holder, thing = scene.items[:2]
        a, b = (scenes.box(item, scene.canvas) for item in (holder, thing))
        assert thing.side <= max(0.61 * holder.side, scenes.SIDES[0])
        assert min(a[2], b[2]) > max(a[0], b[0])
        assert min(a[3], b[3]) > max(a[1], b[1])


def test_patches_of_an_object():
    masks = {0: np.zeros((96, 96), bool)}
    masks[0][8:16, 16:24] = True
    assert np.argwhere(object_patches(masks, (12, 12))[0]).tolist() == [[1, 2]]
