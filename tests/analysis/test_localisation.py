"""Patch AUROC over steps."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
from flowing import scored

from uvr_analysis import figures, localisation_of
from uvr_core.errors import UVRError
from uvr_core.fit.scores import auroc_of


def test_localisation_is_the_pooled_auroc_of_every_step() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((6, 3, 4)) < 0.4
    masks[5] = False
    scores = rng.integers(0, 4, (6, 3, 12)).astype(float)  # with ties
    scores[:, 2] += 3 * masks.reshape(6, 12)
    line = localisation_of(scored(scores, masks))["a"]
    truth = masks.reshape(6, 12)[:5]
    for step in range(3):
        assert line.auroc[step] == pytest.approx(auroc_of(scores[:5, step].ravel(), truth.ravel()))
    assert line.images == 5
    assert (line.low <= line.auroc).all()
    assert (line.auroc <= line.high).all()
    assert line.low[2] > line.high[0]


def test_within_images_nothing_that_differs_between_them_counts_and_places_alone_have_their_own_area() -> None:
    rng = np.random.default_rng(1)
    masks = np.zeros((8, 3, 4), bool)
    masks[:, 1, 1:3] = True  # always the same place
    masks[0], masks[1] = False, rng.random((3, 4)) < 0.5
    scores = rng.normal(size=(8, 1, 12))
    scores += 100 * rng.normal(size=(8, 1, 1))  # one offset for each image
    line = localisation_of(scored(scores, masks))["a"]
    each = [auroc_of(scores[i, 0], masks[i].ravel()) for i in range(1, 8)]
    assert line.within[0] == pytest.approx(np.mean(each))
    assert line.within[0] != pytest.approx(line.auroc[0], abs=0.01)
    others = [masks[[j for j in range(1, 8) if j != i]].sum(0).ravel() for i in range(1, 8)]
    places = [auroc_of(other.astype(float), masks[i].ravel()) for i, other in enumerate(others, 1)]
    assert line.prior == pytest.approx(np.mean(places))
    assert line.prior > 0.8
    alone = localisation_of(scored(scores[1:2], masks[1:2]))["a"]
    assert alone.prior == 0.5


def test_nothing_to_localise() -> None:
    scores = np.zeros((2, 3, 12))
    assert localisation_of(attrs.evolve(scored(scores, np.ones((2, 3, 4), bool)), masks=None)) == {}
    assert localisation_of(scored(scores, np.zeros((2, 3, 4), bool))) == {}
    with pytest.raises(UVRError, match="no localisation"):
        figures.draw_localisation(scored(scores, np.zeros((2, 3, 4), bool)), Path("unused.png"))
