"""The contrast detector: origin over the core, and banks made with and without source images."""

from __future__ import annotations

import attrs
import pytest
import torch
from runner import PROBE, make_bank

from uvr_core import ConceptMismatch
from uvr_plugins.detectors import Anchor, Contrast

GRID, PATCHES, WIDTH = (3, 4), 12, 32


def test_contrast_tells_the_origin_by_the_mean_over_the_core() -> None:
    bank = make_bank()
    generator = torch.Generator().manual_seed(5)
    direction = torch.randn(3, 2 * WIDTH, generator=generator)
    tensors = {**bank.tensors, f"origin/{PROBE}": direction, f"origin_offset/{PROBE}": torch.tensor([0.1, 0.2, 0.3])}
    bank = attrs.evolve(bank, tensors=tensors)
    features = torch.randn(2, PATCHES, 2 * WIDTH, generator=generator)
    core = torch.rand(2, PATCHES, generator=generator) > 0.5
    told = Contrast().origin(features, core, 0.79, bank, PROBE)
    assert told is not None
    for sample in range(2):
        expected = features[sample][core[sample]].mean(0) @ direction[1] + 0.2
        assert float(told[sample]) == pytest.approx(float(expected), abs=1e-4)
    assert Contrast().origin(features, core, 0.79, make_bank(), PROBE) is None


def test_a_bank_for_editing_is_refused_in_synthesis_and_one_for_synthesis_serves_editing() -> None:
    bank = make_bank()
    wide = attrs.evolve(bank, tensors={**bank.tensors, f"direction/{PROBE}": torch.randn(3, 2 * WIDTH)})
    features = torch.randn(2, PATCHES, 2 * WIDTH)
    with pytest.raises(ConceptMismatch, match="source images"):
        Contrast().scores(features[..., :WIDTH], 1.0, wide, PROBE)
    for detector in (Contrast(), Anchor()):
        alone = detector.scores(features[..., :WIDTH], 1.0, bank, PROBE)
        assert torch.equal(detector.scores(features, 1.0, bank, PROBE), alone)
