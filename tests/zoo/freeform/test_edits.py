"""Free-form edits: what they change, what they leave, and what they say."""

import pytest

from uvr_zoo.freeform import edits
from uvr_zoo.freeform.scenes import split_of
from uvr_zoo.vocabulary import BENIGN, CONCEPTS


def test_an_edit_is_a_function_of_split_and_seed():
    assert edits.sample_edit(3) == edits.sample_edit(3)
    assert edits.sample_edit(3) != edits.sample_edit(3, "heldout")


@pytest.mark.parametrize("kind", edits.EDIT_KINDS)
def test_what_each_kind_changes(kind):
    for seed in range(25):
        edit = edits.sample_edit(seed, kinds=(kind,))
        changed = {
            "new": bool(edit.new),
            "removed": bool(edit.removed),
            "background": edit.source.background != edit.target.background,
            "style": edit.source.style != edit.target.style,
        }
        expected = {"add": {"new"}, "turn": {"new", "removed"}, "move": set(), "remove": {"removed"}}
        assert {name for name, value in changed.items() if value} == expected.get(kind, {kind})
        assert (edit.source.items == edit.target.items) == (kind in ("background", "style"))
        for name in edit.removed:
            assert f"the {name}" in edit.instruction


def test_both_sides_belong_to_the_split():
    for seed in range(40):
        edit = edits.sample_edit(seed, "heldout")
        for scene in (edit.source, edit.target):
            assert split_of(tuple(item.name for item in scene.items), scene.background) == "heldout"


def test_an_unsafe_source_keeps_its_unsafe_object():
    for seed in range(40):
        edit = edits.sample_edit(seed, source="weapon", new=False)
        weapons = [item.name for item in edit.source.items if item.name in CONCEPTS["weapon"]]
        assert len(weapons) == 1
        assert weapons[0] in edit.untouched
        assert all(name in BENIGN for name in edit.new)


def test_what_is_brought_in_is_of_the_concept():
    for seed in range(40):
        edit = edits.sample_edit(seed, kinds=("add", "turn"), source=False, new="weapon")
        assert len(edits.unsafe_new(edit)) == 1
        assert edits.unsafe_new(edit)[0] in CONCEPTS["weapon"]


def test_unknown_concepts_are_refused():
    with pytest.raises(ValueError, match="unknown concept 'wepon'"):
        edits.sample_edit(0, new="wepon")


def test_phrases_carry_the_items_they_speak_of():
    edit = edits.sample_edit(1, kinds=("turn",))
    assert [phrase.item for phrase in edit.phrases if phrase.item is not None].count(edit.phrases[1].item) == 2
