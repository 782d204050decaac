"""A step cache reuses what was computed under today's masks, and the ledger counts it; all else is computed."""

from __future__ import annotations

from typing import Any

import attrs
import diffusers
import numpy as np
import pytest
import torch
from diffusers.hooks import apply_first_block_cache, apply_mag_cache
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


def mag_cache(runner: Runner, steps: int = STEPS) -> Any:
    """It reuses in every step but the first, if it may, and runs no block then. Returns the hook that decides."""
    config = diffusers.MagCacheConfig(
        threshold=100.0, max_skip_steps=100, retention_ratio=0.0, num_inference_steps=steps, mag_ratios=[1.0] * steps
    )
    apply_mag_cache(runner.pipe.transformer, config)
    return runner.pipe.transformer.transformer_blocks[0]._diffusers_hook.hooks["mag_cache_leader_block_hook"]


def test_mag_cache_computes_until_all_of_it_was_under_todays_masks(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    """Four taps. Located in step 0, behind a block that ran before."""
    mag_cache(runner)
    report, _ = drawn(runner, window(bank, runner, 1), Oracle(masks()))
    assert report.reused == (STEPS - 2) * 4
    assert report.fired == STEPS * 4 - report.reused
    assert report.findings[1].steps_regulated == 2  # the others carry what these left


@pytest.mark.parametrize("looked", [2, STEPS])
def test_mag_cache_computes_while_a_concept_is_looked_for(
    runner: Runner, bank: uvr_core.ConceptBank, looked: int
) -> None:
    mag_cache(runner)
    report, _ = drawn(runner, window(bank, runner, looked), Oracle(np.zeros((3, 8, 8), bool)))
    assert report.reused == (STEPS - looked) * 4


def test_mag_cache_reuses_what_a_regulated_step_left(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    hook, bank, left = mag_cache(runner), window(bank, runner, 1), []

    def keep(*args: Any) -> None:
        (state,) = hook.state_manager._state_cache.values()
        left.append(None if state.previous_residual is None else state.previous_residual.clone())

    runner.pipe.transformer.single_transformer_blocks[-1].register_forward_hook(keep)
    drawn(runner, bank, Oracle(masks()))
    regulated, left[:] = list(left), []
    drawn(runner, bank, Oracle(np.zeros((3, 8, 8), bool)))
    assert len(regulated) == STEPS
    assert all(torch.equal(each, regulated[1]) for each in regulated[2:-1])  # dropped when the last step ends
    assert not torch.equal(regulated[1][1], left[1][1])


def test_what_one_part_of_guidance_left_is_not_reused_in_another(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    """diffusers tells a cache no context that comes after the pipeline's first run: both passes share what it holds."""
    guided = {"negative_prompt": [""] * 3, "true_cfg_scale": 3.0, "num_inference_steps": STEPS}
    bank = window(bank, runner, 1)
    runner.run(**guided)
    hook = mag_cache(runner, 2 * STEPS)
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(masks()), policy="block") as reg:
        images = runner.run(**guided)
        assert list(hook.state_manager._state_cache) in ([], ["inference"])
        assert reg.report.reused == 0
    runner.pipe.transformer.disable_cache()
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(masks()), policy="block"):
        assert np.array_equal(runner.run(**guided), images)


def test_mag_cache_reuses_nothing_for_a_policy_that_holds_back(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    mag_cache(runner)
    report, _ = drawn(runner, window(bank, runner, 1), Oracle(masks()), Late())
    assert report.findings[1].steps_regulated
    assert report.reused == (STEPS - STEPS // 2 - 1) * 4


def test_detached_the_stock_mag_cache_decides(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    hook = mag_cache(runner)
    before = hook.fn_ref.pre_forward, hook.fn_ref.post_forward

    def run() -> np.ndarray:
        runner.pipe.transformer._reset_stateful_cache()
        return runner.run(num_inference_steps=STEPS)

    stock = run()
    report, regulated = drawn(runner, window(bank, runner, STEPS), Oracle(masks()))
    assert report.reused == 0
    assert not np.array_equal(regulated, stock)
    assert (hook.fn_ref.pre_forward, hook.fn_ref.post_forward) == before
    assert np.array_equal(run(), stock)
