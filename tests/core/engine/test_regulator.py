"""What the user holds: reports, and a detach that restores everything."""

from __future__ import annotations

import numpy as np
from diffusers import FluxPipeline
from runner import Runner

import uvr_core
from uvr_plugins.detectors import Oracle


def one_masked() -> np.ndarray:
    """Masks of three samples, the first and last empty."""
    mask = np.zeros((3, 8, 8), bool)
    mask[1, 2:5, 3:6] = True
    return mask


def test_detach_restores_everything(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    transformer = runner.pipe.transformer
    processors = [m.processor for n, m in transformer.named_modules() if n.endswith(".attn")]
    keys = list(transformer.state_dict())
    stock = runner.run()
    reg = uvr_core.attach(runner.pipe, concepts=bank, policy="block", detector=Oracle(one_masked()))
    assert not np.array_equal(runner.run(), stock)
    assert list(transformer.state_dict()) == keys
    reg.detach()
    reg.detach()
    assert not reg.attached
    assert type(runner.pipe) is FluxPipeline
    assert [m.processor for n, m in transformer.named_modules() if n.endswith(".attn")] == processors
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in transformer.modules())
    assert np.array_equal(runner.run(), stock)


def test_bare_transformer_regulates_and_reports_progress(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy="block"):
        whole = runner.run()
    with uvr_core.attach(runner.pipe.transformer, concepts=bank, detector=Oracle(one_masked()), policy="block") as reg:
        for _ in range(2):
            with reg.generation():
                assert np.array_equal(runner.run(), whole)
                assert (reg.report.posture, reg.report.steps) == ("incomplete", 3)
            assert (reg.report.posture, reg.report.steps) == ("regulate", 3)
