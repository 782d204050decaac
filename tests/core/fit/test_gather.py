"""Gathering: which patches go where, which text feeds a region, and what is kept."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from uvr_core import UVRError
from uvr_core.adapter import Layout
from uvr_core.fit import gather, moments
from uvr_core.fit.gather import Gathered, Reservoir, feeding_rows, origin_tensors
from uvr_core.fit.moments import Moments
from uvr_core.tokens import Role


def test_the_feeding_tokens_are_those_above_a_contrast_or_the_one_with_the_largest() -> None:
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(feeding_rows(rows, torch.tensor([3.0, 1.0, 2.6, 0.0])), rows[[0, 2]].mean(0))
    assert torch.equal(feeding_rows(rows, torch.tensor([0.5, 1.0, 2.5, 0.0])), rows[2])


def calls(monkeypatch: pytest.MonkeyPatch, steps: Sequence[torch.Tensor], grid: tuple[int, int]) -> list[Any]:
    """Calls of tap "p" whose features are given; three text tokens, of which the second feeds the concept."""
    by_step = dict(enumerate(steps))
    monkeypatch.setattr(gather, "features", lambda call: by_step[call.forward.step])
    monkeypatch.setattr(gather, "text_rows", lambda call: torch.eye(3, 2)[None].expand(2, 3, 2))
    monkeypatch.setattr(gather, "contrast", lambda *args, **kwargs: (torch.tensor([[0.0, 9.0, 1.0]] * 2), None))
    return [
        types.SimpleNamespace(
            tap="p",
            forward=types.SimpleNamespace(step=step, sigma=1 - step / 2),
            query=torch.zeros(1),
            layout=Layout(grid),
            queries=types.SimpleNamespace(count=lambda role: 3 if role == Role.TEXT else 0),
            keys=types.SimpleNamespace(text=slice(0, 3)),
        )
        for step in by_step
    ]


@pytest.mark.parametrize("narrow", [256, 0])
def test_patches_go_where_their_mask_says(monkeypatch: pytest.MonkeyPatch, narrow: int) -> None:
    """Two images of 3 x 4 patches, 2 channels and 2 of the facing reference token; the second shows nothing."""
    monkeypatch.setattr(moments, "NARROW", narrow)
    steps = [torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(step)) for step in range(2)]
    masks = np.zeros((2, 3, 4), bool)
    masks[0, 0, 0] = True  # its ring: three neighbours
    gathered = Gathered(width=2, max_anchors=5)
    with gathered.showing(masks, np.array([True, False])) as read:
        for call in calls(monkeypatch, steps, (3, 4)):
            read(call)
    assert (gathered.images, gathered.drawn, gathered.sigmas) == (1, 2, [1.0, 0.5])
    for step in range(2):
        patches = steps[step][0]
        assert gathered.unsafe["p", step].n == 1
        np.testing.assert_allclose(gathered.unsafe["p", step].mean, patches[0], rtol=1e-6)
        outside = torch.tensor([2, 3, 6, 7, 8, 9, 10, 11])
        np.testing.assert_allclose(gathered.other["p", step].mean, patches[outside].mean(0), atol=1e-6)
        assert {way for _, at, way in gathered.origin if at == step} == {True}
        assert gathered.tokens["p", step][1] == 1
    assert torch.equal(gathered.anchors["p"].rows, steps[1][0][:1, :2])  # the last step's
    with gathered.benign() as read:
        for call in calls(monkeypatch, steps, (3, 4)):
            read(call)
    assert gathered.other["p", 0].n == 8 + 24
    tensors = gathered.tensors("p")
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    assert shapes == {"direction/p": (2, 4), "offset/p": (2,), "anchors/p": (1, 2), "token/p": (2, 2)}
    assert torch.equal(tensors["token/p"], torch.tensor([[0.0, 1.0]] * 2))


def test_masks_of_another_grid_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with Gathered(width=4).showing(np.ones((2, 4, 4), bool), None) as read:
        for call in calls(monkeypatch, [torch.zeros(2, 12, 4)], (3, 4)):
            with pytest.raises(UVRError, match=r"masks: expected \(3, 4\) .* got \(4, 4\)"):
                read(call)


def test_a_batch_that_shows_nothing_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered = Gathered(width=4)
    with gathered.showing(np.zeros((2, 3, 4), bool), None) as read:
        for call in calls(monkeypatch, [torch.zeros(2, 12, 4)], (3, 4)):
            read(call)
    assert (gathered.images, gathered.drawn, gathered.unsafe, gathered.other) == (0, 2, {}, {})


def test_anchors_are_thinned_out_by_the_seed_and_stay_in_order() -> None:
    def kept(seed: int, pieces: int) -> torch.Tensor:
        reservoir = Reservoir(6, torch.Generator().manual_seed(seed))
        for part in torch.arange(20.0)[:, None].chunk(pieces):
            reservoir.add(part)
        assert reservoir.rows is not None
        return reservoir.rows.flatten()

    one, other = kept(0, 1), kept(1, 1)
    assert len(one) == len(other) == 6
    assert not torch.equal(one, other)
    assert torch.equal(one, one.sort().values)
    assert torch.equal(one, kept(0, 7))  # however they come


def test_every_row_is_as_likely_to_stay() -> None:
    counts = torch.zeros(12)
    for seed in range(600):
        reservoir = Reservoir(3, torch.Generator().manual_seed(seed))
        for part in torch.arange(12)[:, None].split(5):
            reservoir.add(part)
        counts[reservoir.rows] += 1
    assert counts.sum() == 1800
    assert (counts / 600 - 0.25).abs().max() < 0.08  # 4.5 deviations


GRID, PATCHES, WIDTH = (3, 4), 12, 32


def class_of(center: torch.Tensor, count: int, seed: int) -> Moments:
    rows = Moments()
    rows.add(center + 0.3 * torch.randn(count, len(center), generator=torch.Generator().manual_seed(seed)))
    return rows


def test_origin_is_positive_for_the_source_and_zero_halfway() -> None:
    source, words = torch.randn(2, 2 * WIDTH, generator=torch.Generator().manual_seed(3))
    means = {("p", 0, True): class_of(source, 60, 1), ("p", 0, False): class_of(words, 60, 2)}
    tensors = origin_tensors("p", 1, means)
    direction, offset = tensors["origin/p"][0], float(tensors["origin_offset/p"])
    centers = [means["p", 0, way].mean.float() for way in (True, False)]
    high, low = (float(center @ direction) + offset for center in centers)
    assert high > 1
    assert low == pytest.approx(-high, rel=1e-3)
    assert float(sum(centers) / 2 @ direction) + offset == pytest.approx(0, abs=1e-3 * high)


def test_origin_needs_both_ways_in() -> None:
    means = {("p", 0, True): class_of(torch.zeros(4), 60, 1), ("p", 0, False): class_of(torch.ones(4), 3, 2)}
    assert origin_tensors("p", 1, means) == {}
