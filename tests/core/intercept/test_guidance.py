"""Which rows follow the prompt, whatever way guidance reaches the model."""

from __future__ import annotations

import pytest

from uvr_core.errors import UVRError
from uvr_core.intercept.guidance import Part, parts_of

WHOLE, FIRST, SECOND = None, slice(0, 2), slice(2, 4)


@pytest.mark.parametrize(
    ("guidance", "name", "number", "bare", "batched", "parts"),
    [
        # the pipeline's own words come before the order of forwards
        ("two_pass", "cond", 1, False, False, [("cond", WHOLE)]),
        ("two_pass", "uncond", 0, False, False, [("uncond", WHOLE)]),
        ("two_pass", None, 0, False, False, [("cond", WHOLE)]),
        ("two_pass", None, 1, False, False, [("uncond", WHOLE)]),
        ("two_pass", None, 2, False, False, [("aside", WHOLE)]),
        ("single", None, 1, False, False, [("aside", WHOLE)]),
        ("batched:uc", None, 0, False, True, [("uncond", FIRST), ("cond", SECOND)]),
        ("batched:cu", None, 0, False, True, [("uncond", SECOND), ("cond", FIRST)]),
        ("batched:uc", None, 0, False, False, [("cond", WHOLE)]),
        ("batched:uc", None, 1, False, True, [("aside", WHOLE)]),
        # nothing tells: every row is regulated
        ("two_pass", None, 1, True, False, [("all", WHOLE)]),
    ],
)
def test_parts_of_a_forward(
    guidance: str, name: str | None, number: int, bare: bool, batched: bool, parts: list[tuple[str, slice]]
) -> None:
    assert [(p.name, p.rows) for p in parts_of(guidance, 4, name, number, bare, batched)] == parts


def test_an_odd_batch_has_no_halves() -> None:
    with pytest.raises(UVRError, match="a batch of 3 does not hold"):
        parts_of("batched:uc", 3, None, 0, False, True)


@pytest.mark.parametrize(("name", "follows"), [("cond", True), ("all", True), ("uncond", False), ("aside", False)])
def test_which_part_follows_the_prompt(name: str, follows: bool) -> None:
    assert Part(name, WHOLE).follows_prompt is follows  # type: ignore[arg-type]
