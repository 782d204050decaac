"""A call made again draws the same noise, from the same arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from uvr_core.intercept.replay import Replay


class Pipeline:
    def __call__(self, prompt: Any, generator: Any = None, steps: int = 2) -> torch.Tensor:
        each = generator if isinstance(generator, list) else [generator]
        if isinstance(prompt, list):
            prompt[0] = f"<{prompt[0]}>"  # as ZImagePipeline does
        return torch.cat([torch.randn(2, generator=one) for one in each])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_noise_is_the_same(count: int) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    generator = None if count == 0 else generators[0] if count == 1 else generators
    torch.randn(3)
    replay = Replay.of(Pipeline, (["a cat"],), {"generator": generator})
    first = Pipeline()("a cat", generator)
    after = [one.get_state() for one in generators]
    args, kwargs = replay.again()
    assert torch.equal(Pipeline()(*args, **kwargs), first)
    assert all(torch.equal(one.get_state(), state) for one, state in zip(generators, after, strict=True))


def test_what_a_call_writes_into_its_lists_is_not_seen_by_the_next() -> None:
    prompts = ["a cat", "a dog"]
    replay = Replay.of(Pipeline, (), {"prompt": prompts, "steps": 3})
    Pipeline()(prompts)
    for _ in range(2):
        args, kwargs = replay.again()
        assert kwargs == {"prompt": ["a cat", "a dog"], "steps": 3}
        Pipeline()(*args, **kwargs)
