"""What skips attention is refused by name."""

from __future__ import annotations

import copy

import pytest
from runner import Runner

import uvr_core
from uvr_core.intercept.runtime import Along


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


def test_a_block_that_takes_anothers_place_is_looked_at_too(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    """What leads to the taps is walked anew where a module was replaced, at any depth."""
    transformer = runner.pipe.transformer
    along = Along(transformer, ("transformer_blocks.0.attn", "transformer_blocks.1.attn"))
    blocks = transformer.transformer_blocks
    assert list(along) == [transformer, blocks, blocks[0], blocks[0].attn, blocks[1], blocks[1].attn]
    assert all(one is other for one, other in zip(along, list(along), strict=True))
    for place, name in ((blocks[0], "attn"), (blocks, "1"), (transformer, "transformer_blocks")):
        old = getattr(place, name)
        new = copy.deepcopy(old)
        setattr(place, name, new)
        assert any(module is new for module in along)
        assert not any(module is old for module in along)
