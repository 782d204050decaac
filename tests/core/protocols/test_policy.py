"""What a policy declares, and the classes of rows that it is told."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch

from uvr_core import UVRError
from uvr_core.protocols import Located, MaskOptions, Policy, PolicyTraits, row_classes


class Bare:
    """A policy that declares nothing."""

    def edit(self, located: Any, call: Any) -> None:
        return None


def test_a_policy_that_declares_nothing_acts_on_plain_masks() -> None:
    assert isinstance(Bare(), Policy)
    assert PolicyTraits.of(Bare()) == PolicyTraits(acts=True, needs_uncond=False, masks=MaskOptions(1, 0, 1.0))


def test_what_a_policy_declares_is_read() -> None:
    class Declaring(Bare):
        acts, needs_uncond, masks = False, True, MaskOptions(ring=3, margin=2, mass_ratio=0.5)

    assert PolicyTraits.of(Declaring()) == PolicyTraits(False, True, Declaring.masks)
    Declaring.masks = 3  # type: ignore[assignment]
    with pytest.raises(UVRError, match=r"Declaring\.masks: expected MaskOptions, got 3"):
        PolicyTraits.of(Declaring())


@pytest.mark.parametrize(
    "wrong", [{"ring": -1}, {"ring": 0.5}, {"margin": -2}, {"mass_ratio": 0.0}, {"mass_ratio": 1.1}]
)
def test_mask_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UVRError, match=rf"MaskOptions\.{next(iter(wrong))}: expected"):
        MaskOptions(**wrong)


def test_the_core_wins_over_the_ring() -> None:
    core, ring = torch.tensor([[True, False, True, False]]), torch.tensor([[True, True, False, False]])
    assert row_classes(Located(core, ring, (2, 2), 0.9, 0)).tolist() == [[1, 2, 1, 0]]


def test_what_follows_from_the_masks_is_made_once_and_shared_by_later_steps() -> None:
    core, ring = (torch.tensor([[on, not on]]) for on in (True, False))
    located = Located(core, ring, (1, 2), 0.9, 0)
    later = attrs.evolve(located, sigma=0.5, step=3)
    with torch.inference_mode():
        rows = row_classes(later)
    assert row_classes(located) is rows
    assert not rows.is_inference()
    assert later.once("mine", lambda: [1]) is located.once("mine", lambda: [2])
    assert row_classes(Located(ring, core, (1, 2), 0.9, 0)).tolist() == [[2, 1]]
