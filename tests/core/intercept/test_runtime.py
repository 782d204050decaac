"""What skips attention is refused by name."""

from __future__ import annotations

import pytest
from runner import Runner

import uvr_core


def test_a_cache_that_skips_attention_raises(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    from diffusers import PyramidAttentionBroadcastConfig

    scheduler = runner.pipe.scheduler
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 999),
        current_timestep_callback=lambda: int(scheduler.timesteps[scheduler.step_index or 0]),
    )
    runner.pipe.transformer.enable_cache(config)
    with uvr_core.attach(runner.pipe, concepts=bank), pytest.raises(uvr_core.TapNotFired, match="pyramid_attention"):
        runner.run(num_inference_steps=4)
    runner.pipe.transformer.disable_cache()
