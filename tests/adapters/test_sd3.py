"""Stable Diffusion 3 and 3.5: what its adapter says of them alone."""

from __future__ import annotations

from uvr_adapters import sd3


def test_the_image_comes_first_and_the_unconditional_half_too() -> None:
    assert (sd3.SD3.image_at, sd3.SD3.guidance) == ("start", "batched:uc")
