"""Which rows follow the prompt, whatever way guidance reaches the model."""

from __future__ import annotations

import pytest
import torch

from uvr_core.errors import UnsupportedRuntime
from uvr_core.intercept.guidance import Part, equal_halves, parts_of

WHOLE, FIRST, SECOND = None, slice(0, 2), slice(2, 4)


@pytest.mark.parametrize(
    ("guidance", "name", "number", "trusted", "halves", "parts"),
    [
        # the pipeline's own words come before the order of forwards
        ("two_pass", "cond", 1, True, None, [("cond", WHOLE)]),
        ("two_pass", "uncond", 0, True, None, [("uncond", WHOLE)]),
        ("two_pass", "uncond", 4, False, None, [("uncond", WHOLE)]),
        ("two_pass", None, 0, True, None, [("cond", WHOLE)]),
        ("two_pass", None, 1, True, None, [("uncond", WHOLE)]),
        ("batched:uc", None, 0, True, 2, [("uncond", FIRST), ("cond", SECOND)]),
        ("batched:cu", None, 0, True, 2, [("uncond", SECOND), ("cond", FIRST)]),
        ("batched:uc", None, 0, True, None, [("cond", WHOLE)]),
        # nothing tells: every row is regulated
        ("batched:uc", None, 0, True, 0, [("all", WHOLE)]),
        ("two_pass", None, 1, False, None, [("all", WHOLE)]),
        ("batched:uc", None, 0, False, 2, [("all", WHOLE)]),
        ("single", None, 5, False, None, [("all", WHOLE)]),
    ],
)
def test_parts_of_a_forward(
    guidance: str, name: str | None, number: int, trusted: bool, halves: int | None, parts: list[tuple[str, slice]]
) -> None:
    assert [(p.name, p.rows) for p in parts_of(guidance, name, number, trusted, halves)] == parts


@pytest.mark.parametrize(("guidance", "number"), [("two_pass", 2), ("single", 1), ("batched:uc", 1)])
def test_one_forward_more_than_guidance_has_is_refused(guidance: str, number: int) -> None:
    with pytest.raises(UnsupportedRuntime, match=rf"forward {number + 1} of one step.*has {number};"):
        parts_of(guidance, None, number, True, None)


def test_halves_are_told_by_equal_latents() -> None:
    one, two = torch.randn(2, 3), torch.randn(2, 3)
    assert equal_halves(torch.cat([one, one])) == 2
    assert equal_halves(torch.cat([one, two])) == 0
    assert equal_halves(torch.cat([one[:1]] * 3)) == 0


@pytest.mark.parametrize(("name", "follows"), [("cond", True), ("all", True), ("uncond", False)])
def test_which_part_follows_the_prompt(name: str, follows: bool) -> None:
    assert Part(name, WHOLE).follows_prompt is follows  # type: ignore[arg-type]
