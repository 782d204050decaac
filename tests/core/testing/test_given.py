"""A plan that does what it is told, and nothing else."""

from __future__ import annotations

import pytest
import torch
from conformance import FLUX
from tiny import example

from uvr_core.protocols import CallInfo, Located
from uvr_core.testing.given import Edit, Given, everywhere, regulated

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (2, 3)


@torch.no_grad()
@pytest.mark.parametrize("patches", [[], [4], [1, 4]])
def test_the_patches_given_are_located_and_no_others(patches: list[int]) -> None:
    flux = example("flux")
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[1, patches] = True
    with regulated(flux.model, FLUX, Given(mask), Edit(nothing=True)) as reg:
        flux.run(flux.arguments(SIZE, batch=2), SIZE)
        assert [finding.located for finding in reg.report.findings] == [False, bool(patches)]
        assert reg.report.findings[1].patches == len(patches)


def test_an_edit_is_made_at_its_block_alone() -> None:
    located = Located(torch.tensor([[True, False]]), torch.tensor([[False, True]]), (1, 2), 0.5, 1)
    call = CallInfo("a", 5, 3, lambda: torch.ones(1, 5), lambda: torch.ones(1, 3), lambda: None)
    assert Edit(nothing=True).edit(located, call) is None
    assert Edit(only="b").edit(located, call) is None
    edit = Edit(noise=0.5, only="a").edit(located, call)
    assert (edit.noise.core, edit.noise.ring) == (0.5, 0.0)
    assert edit.reweight is None
    ones = Edit(tokens=True).edit(located, call).reweight
    assert (ones.text_factor.shape, ones.reference_factor.shape) == ((1, 5), (1, 3))
    cut = Edit(cut=True).edit(located, call).reweight
    assert (cut.core.text, cut.core.reference, cut.core.safe) == (0.0, 0.0, 1.0)
    assert everywhere(2, SIZE).mask.tolist() == [[True] * 6] * 2
