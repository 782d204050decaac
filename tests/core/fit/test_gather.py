"""Gathering: which text feeds a region."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uvr_core.fit.gather import Gathered, feeding_rows, origin_tensors
from uvr_core.fit.moments import Moments
from uvr_core.fit.record import Recorded
from uvr_core.ops.mass import flow_contrast, mass_on


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), sharpness=st.sampled_from([0.3, 3.0]), masked=st.booleans())
def test_the_feeding_tokens_are_those_of_the_flow_contrast(seed: int, sharpness: float, masked: bool) -> None:
    """Chosen from the patches' attention to text alone, they are what flow_contrast says of the whole call."""
    text, patches = 6, 12
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, 2, text + patches, 8, generator=generator) * sharpness for _ in range(2))
    mask = torch.ones(1, 1, 1, text + patches, dtype=torch.bool)
    mask[..., 1] = not masked
    inside = torch.rand(patches, generator=generator) < 0.4
    inside[0], inside[1] = True, False
    rows = torch.randn(text, 16, generator=generator)
    tokens = torch.arange(text + patches) < text
    weight = mass_on(q[:, :, text:], k, torch.eye(text + patches)[:, :text], attn_mask=mask).mean(1)[0]
    found = feeding_rows(rows, weight, inside.numpy(), (~inside).numpy())

    def on_rows(side: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros(text, dtype=torch.bool), side])[None]

    contrast = flow_contrast(q, k, on_rows(inside), on_rows(~inside), tokens[None], attn_mask=mask)[0, :text]
    chosen = contrast > 2.5
    chosen[contrast.argmax()] = True
    assert found is not None
    np.testing.assert_allclose(found, rows[chosen].mean(0), atol=1e-5)
    assert not (masked and chosen[1])


def test_there_is_no_feeding_token_without_text_or_patches_to_compare() -> None:
    some, nobody = np.array([True, False]), np.zeros(2, bool)
    assert feeding_rows(torch.zeros(0, 4), torch.zeros(2, 0), some, ~some) is None
    assert feeding_rows(torch.ones(3, 4), torch.ones(2, 3), some, nobody) is None
    assert feeding_rows(torch.ones(3, 4), torch.ones(2, 3), nobody, some) is None


def test_patches_go_where_their_mask_says() -> None:
    """Two images of 3 x 4 patches, 2 channels and 2 of the facing reference token; the second shows nothing."""
    features = {("p", step): torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(step)) for step in range(2)}
    text = {("p", step): (torch.eye(3, 2)[None].expand(2, 3, 2), torch.rand(2, 12, 3)) for step in range(2)}
    masks = np.zeros((2, 3, 4), bool)
    masks[0, 0, 0] = True  # its ring: three neighbours
    gathered = Gathered(width=2)
    gathered.add(Recorded(0, ["a", "b"], (3, 4), features, [1.0, 0.5], text), masks, np.array([True, False]))
    assert (gathered.images, gathered.drawn, gathered.sigmas) == (1, 2, [1.0, 0.5])
    for step in range(2):
        patches = features["p", step][0]
        assert gathered.unsafe["p", step].n == 1
        assert torch.equal(gathered.unsafe["p", step].mean, patches[0].double())
        outside = torch.tensor([2, 3, 6, 7, 8, 9, 10, 11])
        np.testing.assert_allclose(gathered.other["p", step].mean, patches[outside].double().mean(0))
        assert {way for _, at, way in gathered.origin if at == step} == {True}
    assert [x.tolist() for x in gathered.anchors["p"]] == [features["p", 1][0, :1, :2].tolist()]  # the last step's
    assert len(gathered.tokens["p", 0]) == 1
    gathered.add_benign(Recorded(0, ["c", "d"], (3, 4), features, [1.0, 0.5], {}))
    assert gathered.other["p", 0].n == 8 + 24
    tensors = gathered.tensors("p", max_anchors=5, seed=0)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    assert shapes == {"direction/p": (2, 4), "offset/p": (2,), "anchors/p": (1, 2), "token/p": (2, 2)}


def test_too_many_anchors_are_thinned_out_by_the_seed_and_stay_in_order() -> None:
    gathered = Gathered(width=1, sigmas=[1.0])
    features = {("p", 0): torch.arange(20.0).reshape(1, 20, 1)}
    masks = np.ones((1, 4, 5), bool)
    masks[0, 3] = False
    gathered.add(Recorded(0, ["a"], (4, 5), features, [1.0], {}), masks, None)
    gathered.add_benign(Recorded(0, ["b"], (4, 5), features, [1.0], {}))
    one, other = (gathered.tensors("p", 6, seed)["anchors/p"].flatten() for seed in (0, 1))
    assert len(one) == len(other) == 6
    assert not torch.equal(one, other)
    assert torch.equal(one, one.sort().values)
    assert one.max() < 15


GRID, PATCHES, WIDTH = (3, 4), 12, 32


def moments(center: torch.Tensor, count: int, seed: int) -> Moments:
    found = Moments()
    found.add(center + 0.3 * torch.randn(count, len(center), generator=torch.Generator().manual_seed(seed)))
    return found


def test_origin_is_positive_for_the_source_and_zero_halfway() -> None:
    source, words = torch.randn(2, 2 * WIDTH, generator=torch.Generator().manual_seed(3))
    means = {("p", 0, True): moments(source, 60, 1), ("p", 0, False): moments(words, 60, 2)}
    tensors = origin_tensors("p", 1, means)
    direction, offset = tensors["origin/p"][0], float(tensors["origin_offset/p"])
    centers = [means["p", 0, way].mean.float() for way in (True, False)]
    high, low = (float(center @ direction) + offset for center in centers)
    assert high > 1
    assert low == pytest.approx(-high, rel=1e-3)
    assert float(sum(centers) / 2 @ direction) + offset == pytest.approx(0, abs=1e-3 * high)


def test_origin_needs_both_ways_in() -> None:
    means = {("p", 0, True): moments(torch.zeros(4), 60, 1), ("p", 0, False): moments(torch.ones(4), 3, 2)}
    assert origin_tensors("p", 1, means) == {}
