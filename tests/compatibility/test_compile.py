"""torch.compile, whole and of parts, and checkpointed training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from rig import PROMPTS, STEPS, Rig, called, reference
from situations import Attempt, Pair, Topic, plain
from torch._dynamo.utils import counters

topic = Topic("compile")
test_regulated_exactly = topic.regulated_exactly()
test_refused_by_name = topic.refused_by_name()
test_every_row_has_its_cases_and_every_case_its_row = topic.complete()

TRACED = {"backend": "eager", "fullgraph": True}  # no code is generated; inductor has a test of its own


def compile_in_place(rig: Rig, **options: Any) -> None:
    rig.transformer.compile(**(options or TRACED))


def compile_wrapped(rig: Rig) -> None:
    rig.pipe.transformer = torch.compile(rig.pipe.transformer, **TRACED)


def compile_forward(rig: Rig) -> None:
    rig.transformer.forward = torch.compile(rig.transformer.forward, **TRACED)


def compile_blocks(rig: Rig) -> None:
    if rig.transformer._repeated_blocks:
        rig.transformer.compile_repeated_blocks(**TRACED)
        return
    for block in rig.transformer.transformer_blocks:
        block.compile(**TRACED)


def compile_blocks_wrapped(rig: Rig) -> None:
    blocks = rig.transformer.transformer_blocks
    for i, block in enumerate(blocks):
        blocks[i] = torch.compile(block, **TRACED)


def compile_attention(rig: Rig) -> None:
    rig.transformer.transformer_blocks[0].attn.compile(**TRACED)


WAYS = {  # what is compiled: how, everywhere and on FLUX alone
    "the transformer": ((compile_in_place,), (compile_wrapped, compile_forward)),
    "its blocks": ((compile_blocks,), (compile_blocks_wrapped, compile_attention)),
}


def graphs() -> int:
    """How many were made since it was asked last."""
    made_since = counters["stats"]["unique_graphs"]
    counters.clear()
    return made_since


@functools.cache
def stock_compiles(name: str) -> bool:
    """Whether the stock transformer can be compiled at all: torch 2.6 fails in Qwen-Image's position embedding."""
    rig = Rig(name, regulated=False)
    compile_in_place(rig, backend="eager")
    try:
        rig.run(num_inference_steps=1)
    except torch._dynamo.exc.InternalTorchDynamoError:
        return False
    finally:
        torch._dynamo.reset()
    return True


def compiled(what: str, when: str) -> Callable[[Rig], Iterator[Pair]]:
    def pairs(rig: Rig) -> Iterator[Pair]:
        if what == "the transformer" and not stock_compiles(rig.name):
            pytest.skip(f"torch {torch.__version__} cannot compile this transformer, with UVR or without")
        everywhere, on_flux = WAYS[what]
        for feature in everywhere + (on_flux if rig.name == "flux" else ()):
            rig = Rig(rig.name)
            if when == "after":
                yield rig.regulated_run(after=feature), plain(rig)
                continue
            feature(rig)
            rig.run(num_inference_steps=1)  # so that there is something compiled to go on using
            yield rig.regulated_run(), plain(rig)

    return pairs


for each in ("before", "after"):
    for what in WAYS:
        topic.cases[f"torch.compile of {what}, {each} attach"] = compiled(what, each)


@topic.case("torch.compile of a function around the transformer")
def compile_around(rig: Rig) -> Iterator[Pair]:
    inputs = called(rig)
    step = torch.compile(lambda: rig.transformer(**inputs)[0], backend="eager")
    with torch.no_grad():
        step()
        with rig.attach(to=rig.transformer), rig.generation():
            got = step()
        with rig.attach(to=rig.transformer), rig.generation():
            yield got, rig.transformer(**inputs)[0]


@topic.case("torch.compile of a function around the pipeline")
def compile_around_pipeline(rig: Rig) -> Iterator[Pair]:
    """A compiled function that calls the pipeline. Texts are encoded outside: to trace the encoders takes long."""
    embeds, pooled, _ = rig.pipe.encode_prompt(PROMPTS, PROMPTS)
    options = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "height": 64, "width": 64}
    options |= {"num_inference_steps": STEPS, "output_type": "latent"}
    noise = [torch.Generator().manual_seed(40 + i) for i in range(len(PROMPTS))]
    with rig.attach():
        got = torch.compile(lambda: rig.pipe(**options, generator=noise), backend="eager")().images
    yield got, plain(rig)


@pytest.mark.parametrize("feature", [compile_in_place, compile_blocks])
def test_as_many_graphs_as_stock_and_none_anew(feature: Callable[[Rig], None]) -> None:
    """Whatever the step, the prompt, the masks and the attach; detached, the stock graphs are used again."""
    stock = Rig("flux", regulated=False)
    feature(stock)
    graphs()
    images = stock.run()
    expected = graphs()
    torch._dynamo.reset()
    rig = Rig("flux")
    feature(rig)
    rig.run()
    assert graphs() == expected
    rig.regulated_run()
    assert 0 < graphs() <= expected  # fewer where Dynamo has learned what varies
    for _ in range(3):
        rig.regulated_run(num_inference_steps=2)
    with rig.attach(policy="selective"):
        rig.run()
    assert torch.equal(rig.run(), images)
    assert graphs() == 0


def test_generated_code_gives_what_eager_gives() -> None:
    """Two blocks of it, between others that are not compiled."""
    rig = Rig("flux")
    rig.transformer.transformer_blocks[0].compile(fullgraph=True)
    rig.transformer.single_transformer_blocks[1].compile(fullgraph=True)
    torch.testing.assert_close(rig.regulated_run(), reference("flux"), atol=2e-5, rtol=0)


def checkpoint(rig: Rig) -> None:
    rig.transformer.enable_gradient_checkpointing()


topic.both_orders("gradient checkpointing, inference", checkpoint, plain)


@topic.case("gradient checkpointing, training")
def checkpointed_training(rig: Rig) -> Iterator[Attempt]:
    inputs = called(rig)
    checkpoint(rig)
    rig.transformer.train().requires_grad_(True)

    def step() -> None:
        with rig.attach(to=rig.transformer), rig.generation():
            rig.transformer(**inputs)[0].sum().backward()

    yield step
