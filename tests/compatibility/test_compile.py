"""torch.compile, whole and of parts, and checkpointed training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from rig import PROMPTS, Rig, called
from situations import Attempt, Case, Topic, plain

topic = Topic("compile")
test_regulated_exactly = topic.regulated_exactly()
test_refused_by_name = topic.refused_by_name()
test_every_row_has_its_cases_and_every_case_its_row = topic.complete()


def compile_in_place(rig: Rig) -> None:
    rig.transformer.compile(backend="eager")


def compile_wrapped(rig: Rig) -> None:
    rig.pipe.transformer = torch.compile(rig.pipe.transformer, backend="eager")


def compile_forward(rig: Rig) -> None:
    rig.transformer.forward = torch.compile(rig.transformer.forward, backend="eager")


def compile_blocks(rig: Rig) -> None:
    if rig.transformer._repeated_blocks:
        rig.transformer.compile_repeated_blocks(backend="eager")
        return
    for block in rig.transformer.transformer_blocks:
        block.compile(backend="eager")


def compile_block_forwards(rig: Rig) -> None:
    for block in rig.transformer.transformer_blocks:
        block.forward = torch.compile(block.forward, backend="eager")


def compile_blocks_wrapped(rig: Rig) -> None:
    blocks = rig.transformer.transformer_blocks
    for i, block in enumerate(blocks):
        blocks[i] = torch.compile(block, backend="eager")


def compile_attention(rig: Rig) -> None:
    rig.transformer.transformer_blocks[0].attn.compile(backend="eager")


WHOLE = (compile_in_place, compile_wrapped, compile_forward)
REGIONAL = (compile_blocks, compile_blocks_wrapped, compile_block_forwards, compile_attention)


def warmed(feature: Callable[[Rig], object]) -> Callable[[Rig], object]:
    """Compiled, and run once, so that there is something compiled to go on using."""

    def switch_on(rig: Rig) -> None:
        feature(rig)
        rig.run()

    return switch_on


@functools.cache
def stock_compiles(name: str) -> bool:
    """Whether the stock transformer can be compiled at all: torch 2.6 fails in Qwen-Image's position embedding."""
    rig = Rig(name, regulated=False)
    compile_in_place(rig)
    try:
        rig.run()
    except torch._dynamo.exc.InternalTorchDynamoError:
        return False
    return True


def compiled_whole(name: str) -> None:
    if not stock_compiles(name):
        pytest.skip(f"torch {torch.__version__} cannot compile this transformer, with UVR or without")


def compiled(features: tuple[Callable[[Rig], None], ...], when: str) -> Case:
    def attempts(rig: Rig) -> Iterator[Attempt]:
        if features is WHOLE:
            compiled_whole(rig.name)
        for feature in features:
            if when == "before":
                yield lambda f=feature: Rig(rig.name).regulated_run(before=warmed(f))
            else:
                yield lambda f=feature: Rig(rig.name).regulated_run(after=f)

    return attempts


def compile_around(rig: Rig, warm: bool) -> Iterator[Attempt]:
    """A compiled function that calls the transformer; `warm`: run before attach."""
    compiled_whole(rig.name)
    inputs = called(rig)
    step = torch.compile(lambda: rig.transformer(**inputs), backend="eager")
    if warm:
        step()

    def generation() -> None:
        with rig.generation():
            step()

    with rig.attach(to=rig.transformer):
        yield generation


@topic.case("torch.compile of a function around the pipeline, after attach")
def compile_around_pipeline(rig: Rig) -> Iterator[Attempt]:
    """A compiled function that calls the pipeline. Texts are encoded outside: to trace the encoders takes long."""
    embeds, pooled, _ = rig.pipe.encode_prompt(PROMPTS[1], PROMPTS[1])
    texts = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    options = {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "latent"}
    with rig.attach():
        yield torch.compile(lambda: rig.pipe(**texts, **options), backend="eager")


for each in ("before", "after"):
    topic.cases[f"torch.compile of a function around it, {each} attach"] = functools.partial(
        compile_around, warm=each == "before"
    )
    topic.cases[f"torch.compile of the transformer, {each} attach"] = compiled(WHOLE, each)
    topic.cases[f"torch.compile of its blocks, {each} attach"] = compiled(REGIONAL, each)


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
