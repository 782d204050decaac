"""A step cache reuses what was computed under today's masks, and the ledger counts it; all else is computed."""

from __future__ import annotations

from typing import Any

import attrs
import diffusers
import numpy as np
import pytest
import torch
from diffusers.hooks import apply_first_block_cache
from runner import Runner

import uvr_core
from uvr_core.intercept.caches import _DECISION
from uvr_plugins.detectors import Oracle
from uvr_plugins.policies import Block

STEPS = 6


@pytest.fixture
def cached(runner: Runner) -> Runner:
    apply_first_block_cache(runner.pipe.transformer, diffusers.FirstBlockCacheConfig(threshold=100.0))
    return runner


def masks() -> np.ndarray:
    mask = np.zeros((3, 8, 8), bool)
    mask[1, 2:5, 3:6] = True
    return mask


def window(bank: uvr_core.ConceptBank, runner: Runner, steps: int) -> uvr_core.ConceptBank:
    """The concept, looked for in the first so many steps."""
    runner.run(num_inference_steps=STEPS)
    low = float(runner.pipe.scheduler.timesteps[steps - 1]) / 1000 - 1e-3
    found = uvr_core.Calibration("oracle", bank.probes[0], (1.0, low), 0.5)
    return attrs.evolve(bank, calibration=found)


def drawn(runner: Runner, bank: uvr_core.ConceptBank, detector: Any, policy: Any = "block") -> tuple[Any, np.ndarray]:
    with uvr_core.attach(runner.pipe, concepts=bank, detector=detector, policy=policy) as reg:
        images = runner.run(num_inference_steps=STEPS)
        return reg.report, images


def test_everything_is_computed_until_all_of_it_was_under_todays_masks(
    cached: Runner, bank: uvr_core.ConceptBank
) -> None:
    """Four taps, of which the first is always computed. Located in step 0, behind a block that ran before."""
    bank = window(bank, cached, 1)
    report, _ = drawn(cached, bank, Oracle(masks()))
    assert report.reused == (STEPS - 2) * 3  # step 1 computes again what ran before the probe
    assert report.fired == STEPS * 4 - report.reused
    assert report.findings[1].steps_regulated == STEPS
    assert f"{report.reused} served from a step cache" in str(report)


@pytest.mark.parametrize("looked", [2, STEPS])
def test_while_a_concept_is_looked_for_all_is_computed(cached: Runner, bank: uvr_core.ConceptBank, looked: int) -> None:
    report, _ = drawn(cached, window(bank, cached, looked), Oracle(np.zeros((3, 8, 8), bool)))
    assert report.reused == (STEPS - looked) * 3


def test_a_reused_step_carries_what_the_last_computed_one_left(cached: Runner, bank: uvr_core.ConceptBank) -> None:
    """What the blocks behind the first add is that of the last computed step, regulated."""
    bank, added = window(bank, cached, 1), []
    transformer = cached.pipe.transformer
    state = transformer.transformer_blocks[0]._diffusers_hook.hooks["fbc_leader_block_hook"].state_manager

    def keep(*args: Any) -> None:
        (own,) = state._state_cache.values()
        added.append(own.tail_block_residuals[0].clone())

    transformer.single_transformer_blocks[-1].register_forward_hook(keep)
    drawn(cached, bank, Oracle(masks()))
    regulated, added[:] = list(added), []
    drawn(cached, bank, Oracle(np.zeros((3, 8, 8), bool)))
    assert len(regulated) == STEPS
    assert all(torch.equal(each, regulated[1]) for each in regulated[1:])
    assert not torch.equal(regulated[1][1], added[1][1])


class Late:
    """Acts in the later half of the run alone."""

    name, masks = "late", uvr_core.protocols.MaskOptions(ring=0)

    def edit(self, located: Any, call: Any) -> Any:
        return Block(ring=0).edit(located, call) if located.step >= STEPS // 2 else None


def test_a_policy_that_holds_back_keeps_the_cache_from_reusing(cached: Runner, bank: uvr_core.ConceptBank) -> None:
    """It may act in a later step, or in blocks that would be skipped."""
    report, _ = drawn(cached, window(bank, cached, 1), Oracle(masks()), Late())
    assert report.reused == (STEPS - STEPS // 2 - 1) * 3
    assert report.findings[1].steps_regulated == STEPS - STEPS // 2


def test_detached_the_stock_cache_decides(cached: Runner, bank: uvr_core.ConceptBank) -> None:
    def run() -> np.ndarray:
        cached.pipe.transformer._reset_stateful_cache()
        return cached.run(num_inference_steps=STEPS)

    stock = run()
    report, regulated = drawn(cached, window(bank, cached, STEPS), Oracle(masks()))
    assert report.reused == 0
    assert not np.array_equal(regulated, stock)
    assert np.array_equal(run(), stock)
    registries = [m._diffusers_hook for m in cached.pipe.transformer.modules() if hasattr(m, "_diffusers_hook")]
    assert not any(_DECISION in vars(hook) for registry in registries for hook in registry.hooks.values())


def test_a_skipped_tap_that_no_cache_of_ours_answers_for_is_still_missed(
    cached: Runner, bank: uvr_core.ConceptBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvr_core.intercept.caches.Caches.wrap", lambda self: None)
    with pytest.raises(uvr_core.TapNotFired, match="first_block_cache"):
        drawn(cached, window(bank, cached, 1), Oracle(masks()))
