"""What skips attention is refused by name."""

from __future__ import annotations

import pytest
from runner import Runner

import uvr_core


def test_first_block_cache_raises(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    from diffusers import FirstBlockCacheConfig

    runner.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=10.0))
    with uvr_core.attach(runner.pipe, concepts=bank), pytest.raises(uvr_core.TapNotFired, match="did not fire"):
        runner.run(num_inference_steps=4)
    runner.pipe.transformer.disable_cache()
