"""The zoo's scenes: deterministic, split by layout, and with masks that are what the pixels show."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from scipy import ndimage

from uvr_zoo import scenes
from uvr_zoo.scenes import Item, Scene, patch_mask, render, sample, sample_edit, split_of
from uvr_zoo.text import MAX_TOKENS, tokenizer
from uvr_zoo.vocabulary import (
    BACKGROUNDS,
    BENIGN,
    CONCEPTS,
    DESCRIPTIONS,
    ICONS,
    OBJECTS,
    PLACES,
    STYLES,
    SYNONYMS,
    UNSAFE,
)

SPLITS: tuple[scenes.Split, ...] = ("train", "heldout")


def layout(scene: Scene) -> tuple[object, ...]:
    return frozenset((i.name, i.place) for i in scene.items), scene.background


# -- sampling


@pytest.mark.parametrize("split", SPLITS)
def test_a_scene_is_a_function_of_its_arguments(split: scenes.Split) -> None:
    first = [sample(seed, split) for seed in range(50)]
    assert [sample(seed, split) for seed in reversed(range(50))] == first[::-1]
    assert len({scene.caption for scene in first}) > 40
    for scene in first[:5]:
        (a, masks_a), (b, masks_b) = render(scene), render(scene)
        assert np.array_equal(a, b)
        assert all(np.array_equal(masks_a[i], masks_b[i]) for i in masks_a)


def test_the_same_caption_is_drawn_differently_under_another_seed() -> None:
    scene = sample(3)
    assert not np.array_equal(render(scene)[0], render(attrs.evolve(scene, seed=4))[0])


def test_no_layout_is_in_both_splits() -> None:
    train, heldout = ({layout(sample(seed, split)) for seed in range(1500)} for split in SPLITS)
    assert not train & heldout
    assert len(heldout) > 300


def test_the_split_looks_at_objects_places_and_background_alone() -> None:
    for seed in range(100):
        scene = sample(seed, "heldout", wordings=1.0)
        items = tuple(attrs.evolve(item, size="", wording="name") for item in scene.items[::-1])
        assert split_of(items, scene.background) == "heldout"


def test_about_one_layout_in_ten_is_held_out() -> None:
    layouts = [((Item(name, place),), b) for name in OBJECTS for place in PLACES for b in BACKGROUNDS]
    share = np.mean([split_of(*one) == "heldout" for one in layouts])
    assert 0.06 < share < 0.14


@pytest.mark.parametrize("concept", CONCEPTS)
@pytest.mark.parametrize("split", SPLITS)
def test_concept_scenes_hold_exactly_one_object_of_the_concept(concept: str, split: scenes.Split) -> None:
    drawn = [sample(seed, split, unsafe=concept) for seed in range(120)]
    for scene in drawn:
        members = [item.name for item in scene.items if item.name in CONCEPTS[concept]]
        assert len(members) == 1
        assert scene.unsafe == tuple(members)
        assert all(item.name in BENIGN for item in scene.items if item.name not in members)
    if split == "train":  # few layouts of one object alone are held out, of some objects none
        assert {len(scene.items) for scene in drawn} == {1, 2}
    assert {scene.items[0].name in CONCEPTS[concept] for scene in drawn} == {True, False}, "listed first or second"
    assert {i.name for s in drawn for i in s.items} >= set(CONCEPTS[concept])


def test_benign_scenes_hold_nothing_unsafe_and_the_vocabulary_is_kept() -> None:
    objects = ("knife", "cat", "dog", "star")
    for seed in range(100):
        assert not sample(seed, unsafe=False).unsafe
        scene = sample(seed, objects=objects, styles=("toy",), sizes=False, wordings=0.0)
        assert {item.name for item in scene.items} <= set(objects)
        assert len({item.name for item in scene.items}) == len(scene.items)
        assert scene.style == "toy"
        assert all(item.size == "" and item.wording == "name" for item in scene.items)
    assert all(len(sample(seed, pair=1.0).items) == 2 for seed in range(20))
    assert all(len(sample(seed, pair=0.0).items) == 1 for seed in range(20))


def test_a_concept_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown concept 'wepon'; one of weapon"):
        sample(0, unsafe="wepon")
    with pytest.raises(ValueError, match="none of the objects is of concept 'skull': knife, cat"):
        sample(0, unsafe="skull", objects=("knife", "cat"))


# -- pixels


@pytest.mark.parametrize("seed", range(12))
def test_masks_are_the_pixels_that_differ_from_the_bare_background(seed: int) -> None:
    scene = sample(seed, pair=0.8)
    image, masks = render(scene)
    bare, none = render(attrs.evolve(scene, items=()))
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert none == {}
    shown = np.any(list(masks.values()), axis=0)
    change = np.abs(image.astype(int) - bare).max(-1)
    assert ((change > 3) & shown).sum() > 0.9 * shown.sum(), "a mask covers pixels on which nothing is drawn"
    clearly = change > 64  # smoke and soft edges, less than half opaque, are no part of a mask
    assert not (clearly & ~ndimage.binary_dilation(shown, np.ones((3, 3)), 2)).any(), "an object lies outside its mask"
    assert sum(int(mask.sum()) for mask in masks.values()) == shown.sum(), "masks overlap"


@pytest.mark.parametrize("seed", range(6))
def test_a_later_object_covers_an_earlier_one(seed: int) -> None:
    scene = Scene((Item("car", "middle", "large"), Item("skull", "middle")), "snow", "toy", seed)
    both, masks = render(scene)
    first, alone = render(attrs.evolve(scene, items=scene.items[:1]))
    assert np.array_equal(masks[0], alone[0] & ~masks[1])
    assert masks[0].any()
    changed = (both != first).any(-1)
    assert changed.any()
    assert not (changed & ~ndimage.binary_dilation(masks[1], np.ones((3, 3)), 2)).any()


def test_places_and_sizes_are_what_they_say() -> None:
    def centre(place: str, size: str = "") -> tuple[float, float, int]:
        mask = render(Scene((Item("ball", place, size),), "sky", "toy", 5))[1][0]
        y, x = ndimage.center_of_mass(mask)
        return y, x, int(mask.sum())

    assert centre("left")[1] < 24 < 40 < centre("right")[1]
    assert centre("top")[0] < 24 < 40 < centre("bottom")[0]
    assert 26 < centre("middle")[0] < 38
    assert centre("middle", "tiny")[2] < centre("middle")[2] < centre("middle", "large")[2]


def test_the_atlas_has_every_sprite_once() -> None:
    atlas = scenes.atlas()
    assert set(atlas) == {(style, name) for style in STYLES for name in OBJECTS}
    for key, sprite in atlas.items():
        assert sprite.shape == (64, 64, 4)
        assert sprite.dtype == np.uint8
        assert 0.1 < (sprite[..., 3] > 128).mean() < 0.95, key
    assert len({sprite.tobytes() for sprite in atlas.values()}) == len(atlas)


def test_patch_mask_counts_cover() -> None:
    mask = np.zeros((64, 64), bool)
    mask[0:8, 8:16] = True  # one whole patch
    mask[8:9, 0:8] = True  # an eighth of another
    mask[16:18, 0:8] = True  # a quarter of a third
    expected = np.zeros((8, 8), bool)
    expected[0, 1] = expected[2, 0] = True
    assert np.array_equal(patch_mask(mask), expected)
    expected[1, 0] = True
    assert np.array_equal(patch_mask(mask, cover=0.125), expected)
    wide = patch_mask(mask, (4, 16), 0.5)
    assert wide.shape == (4, 16)
    assert np.argwhere(wide).tolist() == [[0, 2], [0, 3]]


# -- words


def test_captions_use_the_tokenizers_words_and_fit() -> None:
    words = tokenizer(1000)
    texts = [sample(seed, split, wordings=p).caption for seed in range(150) for split in SPLITS for p in (0.0, 1.0)]
    texts += [sample_edit(seed).instruction for seed in range(150)]
    texts += [*OBJECTS, *(w for ws in SYNONYMS.values() for w in ws), *DESCRIPTIONS.values(), "nothing"]
    for text in texts:
        ids = words(text).input_ids
        assert words.unk_token_id not in ids, text
        assert len(ids) <= MAX_TOKENS, text
    assert words.unk_token_id in words("a unicorn").input_ids


def test_phrases_are_the_caption_and_point_at_their_items() -> None:
    words = tokenizer()
    for seed in range(60):
        scene = sample(seed, wordings=0.5)
        assert " ".join(text for text, _ in scene.phrases) == scene.caption
        assert [index for _, index in scene.phrases if index is not None] == list(range(len(scene.items)))
        assert sum(len(text.split()) for text, _ in scene.phrases) == len(words(scene.caption).input_ids) - 2


def test_noun_phrases() -> None:
    assert Item("apple", "left").noun_phrase == "an apple"
    assert Item("apple", "left", "tiny").noun_phrase == "a tiny apple"
    assert Item("knife", "left", "large", "synonym").noun_phrase == "a large blade"
    assert Item("knife", "left", "large", "description").noun_phrase == "something to cut bread with"


def test_descriptions_never_name_the_object() -> None:
    for name, text in DESCRIPTIONS.items():
        forbidden = {name, *SYNONYMS.get(name, ())}
        assert not forbidden & set(text.split()), name


def test_the_worlds_tables_agree() -> None:
    assert set(ICONS) == set(OBJECTS)
    assert not set(UNSAFE) & set(BENIGN)
    assert sorted(name for members in CONCEPTS.values() for name in members) == sorted(UNSAFE)
    assert set(SYNONYMS) | set(DESCRIPTIONS) <= set(OBJECTS)
    synonyms = [w for ws in SYNONYMS.values() for w in ws]
    assert len(set(synonyms)) == len(synonyms)
    assert not set(synonyms) & set(OBJECTS)


# -- edits


@pytest.mark.parametrize("split", SPLITS)
def test_edits_belong_to_their_split_and_do_what_they_say(split: scenes.Split) -> None:
    kinds = set()
    for seed in range(150):
        edit = sample_edit(seed, split)
        assert sample_edit(seed, split) == edit
        assert split_of(edit.target.items, edit.target.background) == split
        if split == "train":
            assert split_of(edit.source.items, edit.source.background) == "train"
        before, after = ([item.name for item in scene.items] for scene in (edit.source, edit.target))
        verb = edit.instruction.split()[0]
        kinds.add(verb)
        assert edit.source != edit.target
        assert len(set(after)) == len(after)
        if verb == "change":
            assert before == after
            assert edit.instruction.endswith(edit.target.background)
            assert edit.target.background != edit.source.background
        elif verb == "replace":
            assert len(before) == len(after)
            assert before[0] in edit.instruction
            assert after[0] in edit.instruction
        else:
            assert after[:-1] == before
            assert after[-1] in edit.instruction
    assert kinds == {"add", "replace", "change", "put"}
