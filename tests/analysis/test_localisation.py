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


def test_nothing_to_localise() -> None:
    scores = np.zeros((2, 3, 12))
    assert localisation_of(attrs.evolve(scored(scores, np.ones((2, 3, 4), bool)), masks=None)) == {}
    assert localisation_of(scored(scores, np.zeros((2, 3, 4), bool))) == {}
    with pytest.raises(UVRError, match="no localisation"):
        figures.draw_localisation(scored(scores, np.zeros((2, 3, 4), bool)), Path("unused.png"))
