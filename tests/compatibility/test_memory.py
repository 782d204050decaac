"""Weights stored elsewhere or smaller, other precisions, autograd modes."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator

import accelerate
import pytest
import torch
from rig import Rig, reference
from situations import Pair, Topic, plain

CPU = torch.device("cpu")

topic = Topic("memory")
test_regulated_exactly = topic.regulated_exactly()
test_every_row_has_its_cases_and_every_case_its_row = topic.complete()


def leaf_offload(rig: Rig) -> None:
    accelerate.cpu_offload(rig.transformer, execution_device=CPU)
    assert any(p.is_meta for p in rig.transformer.parameters())


def model_offload(rig: Rig) -> None:
    accelerate.cpu_offload_with_hook(rig.transformer, execution_device=CPU)


def release(package: str) -> tuple[int, ...]:
    """(0, 42) of 0.42.1."""
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])


def group_offload(kind: str) -> Callable[[Rig], None]:
    def switch_on(rig: Rig) -> None:
        if release("diffusers") < (0, 41) and not torch.accelerator.is_available():
            pytest.skip("group offload before diffusers 0.41 asks for an accelerator, whatever the device")
        blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        rig.transformer.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=kind, **blocks)

    return switch_on


topic.both_orders("leaf offload (accelerate)", leaf_offload, plain)
topic.both_orders("model offload (accelerate)", model_offload, plain)
topic.both_orders("group offload, blocks", group_offload("block_level"), plain)
topic.both_orders("group offload, leaves", group_offload("leaf_level"), plain)


def fp8(rig: Rig) -> None:
    rig.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert any(p.dtype == torch.float8_e4m3fn for p in rig.transformer.parameters())


def rounded(rig: Rig) -> torch.Tensor:
    """The weights that fp8 storage leaves, in float32."""
    cast, other = Rig(rig.name), Rig(rig.name)
    fp8(cast)
    other.transformer.load_state_dict({k: v.float() for k, v in cast.transformer.state_dict().items()})
    images = other.regulated_run()
    assert (images - reference(rig.name)).abs().max() > 1e-3
    return images


topic.both_orders("layerwise casting (fp8 storage)", fp8, rounded)


def unlocated_is_stock(name: str, mode: Callable[[Rig], contextlib.AbstractContextManager[object]]) -> None:
    """The image in which nothing is located is bitwise stock in the same mode; the witness sees to the other."""

    def check(rig: Rig) -> Iterator[Pair]:
        with mode(rig):
            stock, images = rig.run(), rig.regulated_run()
        assert torch.equal(images[0], stock[0])
        assert not torch.equal(images[1], stock[1])
        yield images, torch.stack([stock[0], images[1]])

    topic.cases[name] = check


def bfloat16(rig: Rig) -> contextlib.AbstractContextManager[object]:
    rig.pipe.to(torch.bfloat16)
    return contextlib.nullcontext()


unlocated_is_stock("bfloat16 weights", bfloat16)
unlocated_is_stock("torch.autocast, bfloat16", lambda rig: torch.autocast("cpu", torch.bfloat16))


@topic.case("torch.inference_mode")
def inference_mode(rig: Rig) -> Iterator[Pair]:
    with torch.inference_mode():
        yield rig.regulated_run(), reference(rig.name)
