"""Stable Diffusion 3 and 3.5: what is read off the root's arguments."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from uvr_adapters import sd3


def test_layout_counts_patches_of_the_latents() -> None:
    model = SimpleNamespace(config=SimpleNamespace(patch_size=2))
    layout = sd3.layout({"self": model, "hidden_states": torch.empty(2, 16, 8, 12)})
    assert (layout.image, layout.output, layout.grid, layout.references) == (24, 24, (4, 6), ())


def test_the_time_argument_counts_to_a_thousand() -> None:
    assert sd3.sigma({"timestep": torch.tensor([750.0])}).tolist() == [0.75]


def test_the_image_comes_first_and_the_unconditional_half_too() -> None:
    assert (sd3.SD3.image_at, sd3.SD3.guidance) == ("start", "batched:uc")
