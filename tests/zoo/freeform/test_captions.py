"""Free-form captions: mostly placeless, true in what they say, in the wordings of their split."""

import numpy as np
import pytest

from uvr_zoo.freeform import scenes, wordings
from uvr_zoo.freeform.captions import REGIONS, caption, region
from uvr_zoo.vocabulary import OBJECTS


@pytest.fixture(scope="module")
def drawn():
    return [(scene, caption(scene)) for scene in map(scenes.sample, range(1500))]


def test_seven_captions_of_ten_say_no_place(drawn):
    kinds = [spoken.place for _, spoken in drawn]
    assert 0.7 <= kinds.count("none") / len(kinds) <= 0.85
    assert all(kinds.count(kind) >= 30 for kind in ("vague", "relation", "exact"))


def test_captions_have_one_to_some_forty_words(drawn):
    lengths = [len(spoken.text.split()) for _, spoken in drawn]
    assert min(lengths) == 1
    assert 25 < max(lengths) <= 48


def test_every_object_is_named_once_in_a_wording_of_the_split(drawn):
    for scene, spoken in drawn[:400]:
        assert sorted({p.item for p in spoken.phrases if p.item is not None}) == list(range(len(scene.items)))
        for index, kind in enumerate(spoken.kinds):
            texts = wordings.wordings(scene.items[index].name, kind, "train")
            assert any(text in spoken.text for text in texts)


def test_held_out_wordings_are_in_no_training_caption():
    for name in OBJECTS:
        for kind in ("synonym", "description"):
            train, held = (set(wordings.wordings(name, kind, split)) for split in ("train", "heldout"))
            assert train
            assert held
            assert not train & held
    scene = scenes.sample(3, count=1, objects=("pistol",))
    said = {caption(scene, seed, kind="synonym").text for seed in range(200)}
    assert not any(f" {word} " in f" {text} " for word in ("handgun", "six-shooter") for text in said)


def test_exact_places_are_true(drawn):
    exact = [(scene, spoken) for scene, spoken in drawn if spoken.place == "exact"]
    for scene, spoken in exact:
        for phrase in spoken.phrases:
            if phrase.region:
                assert REGIONS[phrase.region - 1] == region(scene.items[phrase.item])
                column = REGIONS[phrase.region - 1].split()[1]
                assert column == "middle" or column in phrase.words


def test_relations_are_said_of_the_scene_that_has_them(drawn):
    for scene, spoken in drawn:
        assert spoken.place != "relation" or scene.relation != "apart"
    scene = next(s for s, _ in drawn if s.relation == "above" and len(s.items) == 2)
    upper, lower = scene.items[1], scene.items[0]
    assert upper.y < lower.y
    for seed in range(20):
        spoken = caption(scene, seed, place="relation", kind="name")
        first = next(p for p in spoken.phrases if p.item is not None).item
        words = {"below", "under", "beneath"} if first == 0 else {"above", "over", "on top of"}
        assert any(word in spoken.text for word in words)


def test_sizes_are_true(drawn):
    for scene, spoken in drawn:
        for phrase in spoken.phrases:
            if phrase.size is not None:
                assert phrase.size == scene.items[phrase.item].size != ""


def test_a_scene_has_as_many_captions_as_seeds():
    scene = scenes.sample(1)
    assert caption(scene, 7) == caption(scene, 7)
    assert len({caption(scene, seed).text for seed in range(30)}) > 20


def test_unknown_objects_are_refused():
    with pytest.raises(ValueError, match="unknown object 'gnome'"):
        wordings.wordings("gnome", "name", "train")


def test_regions_cover_the_canvas():
    shares = np.linspace(-0.05, 1.05, 23)
    found = {region(scenes.Item("cat", float(x), float(y), 20)) for x in shares for y in shares}
    assert found == set(REGIONS)
