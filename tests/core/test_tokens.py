"""Where text, output and reference tokens lie, for every order of them that an adapter can say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from uvr_core.adapter import Layout
from uvr_core.tokens import Role, TokenSpans

LAYOUT = Layout(image=6, output=4, grid=(2, 2), references=((1, 2),))
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
    spans = TokenSpans.of(SimpleNamespace(image_at=image_at, output_first=True), Layout(4, 4, (2, 2)), 4)
    assert (spans.count(Role.TEXT), spans.count(Role.OUTPUT), spans.count(Role.REFERENCE)) == (0, 4, 0)
    assert list(range(4))[spans.output] == [0, 1, 2, 3]
