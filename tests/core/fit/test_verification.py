"""calibrate_verification: its budget holds on its own pictures, and the engine sees what it saw."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import torch
from fitting import BENIGN, OPTIONS, UNSAFE

import uvr_core
from uvr_core import Calibration, UVRError, calibrate_verification

ALL = (1.0, 0.0)


def even(images: Any, grid: tuple[int, int]) -> np.ndarray:
    """A mask source: every other picture or so "shows" the concept, those whose pixels add up to an even number."""
    shown = np.array([int(np.asarray(image, int).sum()) % 2 == 0 for image in images])
    return np.broadcast_to(shown[:, None, None], (len(images), *grid))


@pytest.fixture
def tuned(bank: uvr_core.ConceptBank) -> uvr_core.ConceptBank:
    """Calibrated so that everything is located."""
    how = Calibration("contrast", bank.probes[0], ALL, -1e6, -1e6, 1)
    return attrs.evolve(bank, calibration=how)


@pytest.mark.parametrize("budget", [0.0, 0.34])
def test_the_engine_withholds_what_was_measured(
    pipe: Any, bank: uvr_core.ConceptBank, tuned: uvr_core.ConceptBank, budget: float
) -> None:
    progress: list[int] = []
    verified = calibrate_verification(
        pipe, tuned, bank, UNSAFE, BENIGN, budget, masks=even, min_patches=1, last=0.5, batch_size=10, seed=3,
        generate=OPTIONS, progress=progress.append,
    )  # fmt: skip
    how = verified.verification
    assert isinstance(how, Calibration)
    assert sum(progress) == 2 * len(UNSAFE) + len(BENIGN)
    assert verified.calibration == tuned.calibration
    wrongly, gone = how.measured["gone"]
    assert wrongly <= budget * gone
    assert how.measured["standing"][1] >= how.measured["regulated_standing"][1]
    assert 0 < how.window[0] < 1
    scores = []
    with uvr_core.attach(pipe, concepts=attrs.evolve(verified, verification=attrs.evolve(how, threshold=1e6))) as reg:
        shown = []
        for prompts, seed in ((UNSAFE, 3), (BENIGN, 3 + len(UNSAFE))):
            generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
            shown.append(even(pipe(prompts, generator=generators, **OPTIONS).images, (1, 1))[:, 0, 0])
            scores += [f.verified_score for f in reg.report.findings]
    withheld = np.array(scores) >= how.threshold
    assert int(withheld[~np.concatenate(shown)].sum()) == wrongly
    assert [int(withheld[: len(UNSAFE)][shown[0]].sum()), int(shown[0].sum())] == how.measured["regulated_standing"]


def test_verifying_refuses_what_makes_no_sense(
    pipe: Any, bank: uvr_core.ConceptBank, tuned: uvr_core.ConceptBank
) -> None:
    with pytest.raises(UVRError, match="masks must be a callable"):
        calibrate_verification(pipe, tuned, bank, UNSAFE, BENIGN, masks=np.zeros((4, 8, 8), bool), generate=OPTIONS)
    for name, value in (("max_wrongly_withheld", 1.0), ("last", -0.1)):
        with pytest.raises(UVRError, match=name):
            calibrate_verification(pipe, tuned, bank, UNSAFE, BENIGN, masks=even, generate=OPTIONS, **{name: value})
    never = lambda images, grid: np.zeros((len(images), *grid), bool)  # noqa: E731
    with pytest.raises(UVRError, match="no picture of the calibration shows the concept"):
        calibrate_verification(pipe, tuned, bank, UNSAFE[:1], BENIGN[:1], masks=never, generate=OPTIONS)
