"""Value-space projection: what it takes out, and that it erases."""

from __future__ import annotations

import functools

import pytest
import torch
from asked import WEAPON, arrays, request, same

import uvr_zoo
from uvr_plugins.baselines.adavd import UniAdaVD, project_out

pytestmark = pytest.mark.usefixtures("one_thread")


def test_project_out_takes_what_resembles_the_concept() -> None:
    concept = torch.tensor([[[1.0, 0.0, 0.0]]])
    value = torch.tensor([[[2.0, 0.1, 0.0], [0.1, 2.0, 0.0], [0.0, 0.0, 1.0]]])
    whole = project_out(value, concept, height=1.0, steepness=1000.0, centre=0.9)[0]
    assert torch.allclose(whole[0], torch.tensor([0.0, 0.1, 0.0]), atol=5e-3)  # the orthogonal complement
    assert torch.equal(whole[1:], value[0, 1:])  # cosine below the centre
    twice = project_out(value, concept, height=2.0, steepness=1000.0, centre=0.9)[0]
    assert torch.allclose(twice[0], torch.tensor([-2.0, 0.1, 0.0]), atol=1e-2)
    half = project_out(value, concept, strength=0.5, height=1.0, steepness=1000.0, centre=0.9)[0]
    assert torch.allclose(half[0], torch.tensor([1.0, 0.1, 0.0]), atol=5e-3)


def test_project_out_of_two_near_synonyms_stays_small() -> None:
    """Undamped, two nearly equal concepts would be given huge shares of opposite sign."""
    concept = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 1e-4, 0.0]]])
    value = torch.tensor([[[1.0, 0.5, 0.0]]])
    new = project_out(value, concept, height=1.0, steepness=50.0, centre=0.5)[0, 0]
    assert abs(float(new[0])) < 0.02
    assert float(new[1]) == pytest.approx(0.5, abs=0.02)


def test_uni_adavd_erases_and_is_stock_without_strength() -> None:
    make = functools.partial(request, "flux", count=4, steps=10)
    before, found = make().pipe(**make().call).images, UniAdaVD().generate(make())
    seen, left = (
        [bool(set(row) & set(WEAPON.labels)) for row in uvr_zoo.judge()(images)] for images in (before, found)
    )
    assert sum(seen) >= 3
    assert sum(left) <= sum(seen) // 2
    assert same(arrays(before), arrays(UniAdaVD(strength=0.0).generate(make())))
    assert same(arrays(before), arrays(UniAdaVD(strength=1e-30).generate(make())))  # the values are recomputed
