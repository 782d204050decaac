"""Which rows follow the prompt, whatever way guidance reaches the model."""

from __future__ import annotations

import pytest
import torch

from uvr_core.errors import UnsupportedRuntime
from uvr_core.intercept.guidance import Part, parts_of

WHOLE, FIRST, SECOND = None, slice(0, 2), slice(2, 4)


ONE = torch.arange(6.0).reshape(2, 3)
TWICE, THRICE = torch.cat([ONE, ONE]), torch.cat([ONE] * 3)


@pytest.mark.parametrize(
    ("guidance", "name", "number", "trusted", "parts"),
    [
        # the pipeline's own words come before the order of forwards
        ("two_pass", "cond", 1, True, [("cond", WHOLE)]),
        ("two_pass", "uncond", 0, True, [("uncond", WHOLE)]),
        ("two_pass", "uncond", 4, False, [("uncond", WHOLE)]),
        ("two_pass", "pred_uncond", 0, True, [("uncond", WHOLE)]),
        ("two_pass", None, 0, True, [("cond", WHOLE)]),
        ("two_pass", None, 1, True, [("uncond", WHOLE)]),
        # nothing tells: every row is regulated
        ("two_pass", None, 1, False, [("all", WHOLE)]),
        ("single", None, 5, False, [("all", WHOLE)]),
    ],
)
def test_parts_of_a_forward(
    guidance: str, name: str | None, number: int, trusted: bool, parts: list[tuple[str, slice]]
) -> None:
    assert [(p.name, p.rows) for p in parts_of(guidance, name, number, trusted, TWICE, 2)] == parts


@pytest.mark.parametrize(
    ("guidance", "latents", "images", "parts"),
    [
        ("batched:uc", TWICE, 2, [("uncond", FIRST), ("cond", SECOND)]),
        ("batched:cu", TWICE, 2, [("uncond", SECOND), ("cond", FIRST)]),
        ("batched:cui", THRICE, 2, [("uncond", SECOND), ("image", slice(4, 6)), ("cond", FIRST)]),
        ("batched:cui", TWICE, 2, [("uncond", SECOND), ("cond", FIRST)]),
        ("batched:cu", list(TWICE), 2, [("uncond", SECOND), ("cond", FIRST)]),
        ("batched:cu", [[row, row] for row in TWICE], 2, [("uncond", SECOND), ("cond", FIRST)]),
        # guidance is off: every row follows the prompt, whatever the latents of images of one seed
        ("batched:uc", TWICE, 4, [("cond", WHOLE)]),
        ("batched:uc", torch.ones(2, 3), 2, [("cond", WHOLE)]),
        # nothing tells: every row is regulated
        ("batched:uc", torch.cat([ONE, ONE + 1]), 2, [("all", WHOLE)]),
        ("batched:uc", [*ONE, *torch.ones(2, 4)], 2, [("all", WHOLE)]),
        ("batched:uc", ONE.repeat_interleave(2, 0), 2, [("all", WHOLE)]),  # the parts of an image beside each other
        ("batched:uc", THRICE, 2, [("all", WHOLE)]),
        ("batched:uc", THRICE[:5], 2, [("all", WHOLE)]),
        ("batched:uic", TWICE, 2, [("all", WHOLE)]),
        ("batched:uc", TWICE, None, [("all", WHOLE)]),
        ("batched:uc", None, 2, [("all", WHOLE)]),
        ("batched:uc", ONE, 4, [("all", WHOLE)]),
    ],
)
def test_parts_of_a_batch_are_told_by_the_images_asked_for_and_equal_latents(
    guidance: str, latents: object, images: int | None, parts: list[tuple[str, slice]]
) -> None:
    assert [(p.name, p.rows) for p in parts_of(guidance, None, 0, True, latents, images)] == parts


def test_of_a_pipeline_that_is_not_listed_every_row_is_regulated() -> None:
    assert parts_of("batched:uc", None, 0, False, TWICE, 2) == (Part("all"),)


@pytest.mark.parametrize(("guidance", "number"), [("two_pass", 2), ("single", 1), ("batched:uc", 1)])
def test_one_forward_more_than_guidance_has_is_refused(guidance: str, number: int) -> None:
    with pytest.raises(UnsupportedRuntime, match=rf"forward {number + 1} of one step.*has {number};"):
        parts_of(guidance, None, number, True, ONE, 2)


@pytest.mark.parametrize(("name", "follows"), [("cond", True), ("all", True), ("uncond", False), ("image", False)])
def test_which_part_follows_the_prompt(name: str, follows: bool) -> None:
    assert Part(name, WHOLE).follows_prompt is follows  # type: ignore[arg-type]
