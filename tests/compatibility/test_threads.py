"""Threads, servers and interruptions."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from rig import STEPS, Rig, reference, sibling
from situations import Attempt, Case, Pair, Topic

import uvr_core

topic = Topic("threads")
test_regulated_exactly = topic.regulated_exactly()
test_refused_by_name = topic.refused_by_name()
test_every_row_has_its_cases_and_every_case_its_row = topic.complete()


def in_step(count: int) -> Callable[..., Any]:
    """A step callback at which so many threads wait for one another."""
    barrier = threading.Barrier(count, timeout=30)

    def wait(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        barrier.wait()
        return tensors

    return wait


@topic.case("two threads, two models")
def two_models(rig: Rig) -> Iterator[Pair]:
    other, wait = Rig(rig.name), in_step(2)
    with rig.attach(), other.attach(), concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(r.run, callback_on_step_end=wait) for r in (rig, other)]
        images = [future.result() for future in futures]
    for image in images:
        yield image, reference(rig.name)


@topic.case("two threads, a pipeline each, one transformer")
def one_transformer(rig: Rig) -> Iterator[Pair]:
    pipes, wait = [rig.pipe, sibling(rig)], in_step(2)
    with rig.attach(to=rig.transformer), concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(rig.run, pipe, callback_on_step_end=wait) for pipe in pipes]
        images = [future.result() for future in futures]
    for image in images:
        yield image, reference(rig.name)


@topic.case("two threads, one pipeline")
def one_pipeline(rig: Rig) -> Iterator[Attempt]:
    expected = reference(rig.name)

    def overlap() -> torch.Tensor:
        with rig.attach(), concurrent.futures.ThreadPoolExecutor(1) as pool:
            second: list[concurrent.futures.Future[torch.Tensor]] = []

            def meanwhile(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
                if step == 0:
                    second.append(pool.submit(rig.run))
                    second[0].exception(30)
                return tensors

            assert torch.equal(rig.run(callback_on_step_end=meanwhile), expected)
            return second[0].result()

    yield overlap


@topic.case("asyncio server with a thread pool")
def asyncio_server(rig: Rig) -> Iterator[Pair]:
    """A pipeline per request around one regulated transformer; every request's thread gets a copy of the context."""
    expected = {steps: reference(rig.name, steps) for steps in (1, STEPS)}

    async def serve(steps: int) -> list[torch.Tensor]:
        pipes, wait = [sibling(rig) for _ in range(3)], in_step(3)
        requests = [
            asyncio.to_thread(rig.run, pipe, num_inference_steps=steps, callback_on_step_end=wait) for pipe in pipes
        ]
        return await asyncio.gather(*requests)

    with rig.attach(to=rig.transformer):
        rig.run(num_inference_steps=1)  # warm up, in the context that the requests' are copies of
        got = {steps: asyncio.run(serve(steps)) for steps in (1, STEPS)}
    for steps, images in got.items():
        for image in images:
            yield image, expected[steps]


@topic.case("asyncio server, a model per request")
def asyncio_models(rig: Rig) -> Iterator[Pair]:
    rigs, wait = [rig, Rig(rig.name)], in_step(2)

    async def serve() -> list[torch.Tensor]:
        return await asyncio.gather(*(asyncio.to_thread(r.run, callback_on_step_end=wait) for r in rigs))

    with rigs[0].attach(), rigs[1].attach():
        for r in rigs:
            r.run(num_inference_steps=1)
        images = asyncio.run(serve())
    for image in images:
        yield image, reference(rig.name)


@topic.case("asyncio server, one pipeline for all requests")
def asyncio_one_pipeline(rig: Rig) -> Iterator[Attempt]:
    """While a request is drawn, others are refused; its own images are right."""
    expected = reference(rig.name)
    started, asked = threading.Event(), threading.Event()

    def wait(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        started.set()
        assert asked.wait(30)
        return tensors

    async def serve() -> None:
        first = asyncio.create_task(asyncio.to_thread(rig.run, callback_on_step_end=wait))
        await asyncio.to_thread(started.wait, 30)
        others = await asyncio.gather(*(asyncio.to_thread(rig.run) for _ in range(3)), return_exceptions=True)
        asked.set()
        assert torch.equal(await first, expected)
        refused = [error for error in others if isinstance(error, uvr_core.UnsupportedRuntime)]
        assert len(refused) == len(others)
        raise refused[0]

    with rig.attach():
        yield lambda: asyncio.run(serve())


@topic.case("attach twice")
def attach_twice(rig: Rig) -> Iterator[Attempt]:
    expected = reference(rig.name)
    with rig.attach():
        yield lambda: rig.attach().detach()
        yield lambda: rig.attach(to=rig.transformer).detach()
        assert torch.equal(rig.run(), expected)


def interrupted(error: type[BaseException]) -> Case:
    def after(rig: Rig) -> Iterator[Pair]:
        expected, stock = reference(rig.name), rig.run()
        with rig.attach():
            module = rig.transformer.transformer_blocks[1].attn.to_v

            def explode(*args: object) -> None:
                raise error("boom")

            handle = module.register_forward_hook(explode)
            with pytest.raises(error, match="boom"):
                rig.run()
            handle.remove()
            yield rig.run(), expected
            with pytest.raises(TypeError, match="no_such_option"):
                rig.run(no_such_option=1)
            yield rig.run(), expected
        yield rig.run(), stock

    return after


topic.cases["an exception inside attention"] = interrupted(RuntimeError)
topic.cases["KeyboardInterrupt inside attention"] = interrupted(KeyboardInterrupt)


@topic.case("detach in the middle of a run")
def detached_midway(rig: Rig) -> Iterator[Attempt]:
    def leave(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            reg.detach()
        return tensors

    with rig.attach() as reg:
        yield lambda: rig.run(callback_on_step_end=leave)
