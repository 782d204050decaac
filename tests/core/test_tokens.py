"""Where text, output and reference tokens lie, for every order of them that an adapter can say."""

from __future__ import annotations

from types import SimpleNamespace

import attrs
import pytest

from uvr_core.adapter import Layout
from uvr_core.tokens import Role, TokenSpans

LAYOUT = Layout((2, 2), ((1, 2),))
ORDERS = {  # T text, O output, R reference
    ("end", True): "TTTOOOORR",
    ("end", False): "TTTRROOOO",
    ("start", True): "OOOORRTTT",
    ("start", False): "RROOOOTTT",
}


@pytest.mark.parametrize(("image_at", "output_first"), ORDERS)
def test_every_token_has_one_role(image_at: str, output_first: bool) -> None:
    adapter = SimpleNamespace(image_at=image_at, output_first=output_first)
    axis = ORDERS[image_at, output_first]
    spans = TokenSpans.of(adapter, LAYOUT, len(axis))
    for role, letter in ((Role.TEXT, "T"), (Role.OUTPUT, "O"), (Role.REFERENCE, "R")):
        assert set(axis[spans[role]]) == {letter}
        assert spans.count(role) == axis.count(letter)
    assert (spans.text, spans.output, spans.reference) == tuple(spans[role] for role in list(Role)[:3])


@pytest.mark.parametrize("image_at", ["start", "end"])
def test_roles_that_the_axis_lacks_have_empty_spans(image_at: str) -> None:
    spans = TokenSpans.of(SimpleNamespace(image_at=image_at, output_first=True), Layout((2, 2)), 4)
    assert (spans.count(Role.TEXT), spans.count(Role.OUTPUT), spans.count(Role.REFERENCE)) == (0, 4, 0)
    assert list(range(4))[spans.output] == [0, 1, 2, 3]


@pytest.mark.parametrize(("image_at", "axis"), [("end", "TTTPPOOOORR"), ("start", "OOOORRPPTTT")])
def test_padding_lies_between_text_and_image_and_has_no_role(image_at: str, axis: str) -> None:
    adapter = SimpleNamespace(image_at=image_at, output_first=True)
    spans = TokenSpans.of(adapter, attrs.evolve(LAYOUT, padding=2), len(axis))
    for span, letter in ((spans.text, "T"), (spans.output, "O"), (spans.reference, "R"), (spans.padding, "P")):
        assert axis[span] == letter * axis.count(letter)
    longer = axis.replace("TTT", "TTTTT")
    moved = spans.with_text(5)
    for span, letter in ((moved.text, "T"), (moved.output, "O"), (moved.reference, "R"), (moved.padding, "P")):
        assert longer[span] == letter * longer.count(letter)


@pytest.mark.parametrize(
    ("text_output", "queries", "keys", "axes"),
    [
        (True, 11, 11, ("TTTPPOOOORR", "TTTPPOOOORR")),
        (True, 7, 11, ("TTTOOOO", "TTTPPOOOORR")),  # references and padding out of a cache
        (True, 4, 11, None),  # an image prompt's
        (True, 2, 11, None),
        (True, 8, 8, None),  # no text among the keys
        (True, 30, 30, ("T" * 22 + "PPOOOORR", "T" * 22 + "PPOOOORR")),  # text longer than the picture
        (True, 22, 30, None),  # ... and text alone that asks
        (False, 4, 11, ("OOOO", "TTTPPOOOORR")),
        (False, 6, 11, ("OOOORR", "TTTPPOOOORR")),
        (False, 11, 11, None),
        (False, 22, 30, None),
    ],
)
def test_which_queries_and_keys_are_of_the_joint_call(
    text_output: bool, queries: int, keys: int, axes: tuple[str, str] | None
) -> None:
    adapter = SimpleNamespace(image_at="end", output_first=True, text_output=text_output)
    spans = TokenSpans.of_call(adapter, attrs.evolve(LAYOUT, padding=2), queries, keys)
    if axes is None:
        assert spans is None
        return
    assert spans is not None
    for side, axis in zip(spans, axes, strict=True):
        for span, letter in ((side.text, "T"), (side.output, "O"), (side.reference, "R"), (side.padding, "P")):
            assert axis[span] == letter * axis.count(letter)
