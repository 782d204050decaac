"""What is located is regulated, per image and in order of rank; what is not stays bitwise stock."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch
from runner import Runner, make_bank

import uvr_core
from uvr_plugins.detectors import Oracle
from uvr_plugins.policies import Uvr

POLICIES = ["uvr", "uvr-released", "block", "noise", "project"]


def one_masked() -> np.ndarray:
    """Masks of three samples, the first and last empty."""
    mask = np.zeros((3, 8, 8), bool)
    mask[1, 2:5, 3:6] = True
    return mask


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_nothing_located_is_bitwise_stock(runner: Runner, policy: str, guidance: float) -> None:
    stock = runner.run(true_cfg_scale=guidance)
    with uvr_core.attach(runner.pipe, concepts=make_bank(threshold=1e6), policy=policy) as reg:
        assert np.array_equal(runner.run(true_cfg_scale=guidance), stock)
        assert reg.report is not None
        assert reg.report.posture == "regulate"
        assert not any(f.located for f in reg.report.findings)
        assert reg.report.passes == (2 if guidance > 1 else 1)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_only_the_located_sample_changes(
    runner: Runner, bank: uvr_core.ConceptBank, policy: str, guidance: float
) -> None:
    stock = runner.run(true_cfg_scale=guidance)
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy=policy) as reg:
        images = runner.run(true_cfg_scale=guidance)
        report = reg.report
    same = [np.array_equal(a, b) for a, b in zip(images, stock, strict=True)]
    assert same == [True, False, True]
    assert [f.located for f in report.findings] == [False, True, False]
    assert report.findings[1].patches == 9
    assert report.findings[1].first_step == 0


def test_a_sample_does_not_depend_on_its_batch(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    """Masks and noise are per sample: the second image is the same picture alone and in a batch of three."""
    policy = Uvr(alpha=0.5)
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy=policy):
        together = runner.run()
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()[1:2]), policy=policy):
        generator = [torch.Generator().manual_seed(1)]
        alone = runner.pipe(
            ["a knife on the left"], generator=generator, height=64, width=64, num_inference_steps=3, output_type="np"
        ).images
    np.testing.assert_allclose(alone[0], together[1], atol=2e-5)


def test_a_concept_that_was_never_looked_for_withholds_the_images(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    """Fewer steps, or image-to-image at low strength: no step falls into the window the bank was calibrated for."""
    missed = attrs.evolve(bank, calibration=attrs.evolve(bank.calibration, window=(0.2, 0.1)))
    with uvr_core.attach(runner.pipe, concepts=missed), pytest.raises(uvr_core.UVRError, match="never looked for"):
        runner.run()


def test_overlapping_concepts_the_first_listed_one_wins(runner: Runner) -> None:
    a, b = make_bank("a"), make_bank("b")
    oracle, noisy = Oracle(one_masked()), Uvr(alpha=1.0)

    def run(*concepts: object) -> np.ndarray:
        with uvr_core.attach(runner.pipe, concepts=list(concepts), detector=oracle) as reg:
            images = runner.run()
            assert sum(f.located for f in reg.report.findings) == len(concepts)
        return images

    alone = run((a, Uvr()), (b, "observe"))
    assert np.array_equal(run((a, Uvr()), (b, noisy)), alone)
    assert not np.array_equal(run((b, noisy), (a, Uvr())), alone)
