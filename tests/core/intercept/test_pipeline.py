"""A pipeline's call: one at a time, on the transformer that is tapped, bitwise given back."""

from __future__ import annotations

import concurrent.futures
import inspect
import os
import threading
from typing import Any

import numpy as np
import pytest
import torch
from runner import Runner
from tiny import tiny_flux

import uvr_core


def test_a_second_call_meanwhile_is_refused_and_the_first_goes_on(runner: Runner) -> None:
    refused: list[str] = []

    def again(pipe: object, step: int, timestep: object, tensors: dict[str, object]) -> dict[str, object]:
        if not refused:
            with pytest.raises(uvr_core.UnsupportedRuntime) as caught:
                runner.run()
            refused.append(str(caught.value))
        return tensors

    with uvr_core.attach(runner.pipe) as reg:
        runner.run(callback_on_step_end=again)
        assert reg.report.posture == "observe"
    assert "called while another call of it runs" in refused[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("one_thread")
def test_a_process_forked_while_another_thread_generates(runner: Runner) -> None:
    """The child, in which that thread does not go on, is told so, and attaches anew."""
    expected = runner.run()
    amid, forked = threading.Event(), threading.Event()

    def wait(pipe: object, step: int, timestep: object, tensors: dict[str, object]) -> dict[str, object]:
        amid.set()
        assert forked.wait(60)
        return tensors

    def child() -> str:
        with pytest.raises(uvr_core.UnsupportedRuntime) as caught:
            runner.run()
        reg.detach()
        with uvr_core.attach(runner.pipe):
            assert np.array_equal(runner.run(), expected)
        return str(caught.value)

    reader, writer = os.pipe()
    with uvr_core.attach(runner.pipe) as reg, concurrent.futures.ThreadPoolExecutor(1) as pool:
        other = pool.submit(runner.run, callback_on_step_end=wait)
        assert amid.wait(60)
        if (pid := os.fork()) == 0:
            try:
                os.write(writer, child().encode())
            except BaseException as error:
                os.write(writer, repr(error).encode())
            finally:
                os._exit(0)
        forked.set()
        assert np.array_equal(other.result(60), expected)
    os.waitpid(pid, 0)
    assert b"forked while another thread was generating" in os.read(reader, 10_000)


def test_another_transformer_put_in_after_attach_is_refused(runner: Runner) -> None:
    with uvr_core.attach(runner.pipe):
        runner.pipe.transformer = tiny_flux().transformer
        with pytest.raises(uvr_core.UnsupportedRuntime, match="was replaced after attach"):
            runner.run()


def test_the_call_keeps_its_signature_and_the_class_comes_back(runner: Runner) -> None:
    kind, signature = type(runner.pipe), inspect.signature(runner.pipe.__call__)
    reg = uvr_core.attach(runner.pipe)
    assert isinstance(runner.pipe, kind)
    assert inspect.signature(runner.pipe.__call__) == signature
    assert "cache_context" in vars(runner.pipe.transformer)
    reg.detach()
    assert type(runner.pipe) is kind
    assert "cache_context" not in vars(runner.pipe.transformer)


def test_a_cache_context_of_others_put_there_meanwhile_survives_detach(runner: Runner) -> None:
    transformer = runner.pipe.transformer
    reg = uvr_core.attach(runner.pipe)
    mine = transformer.__dict__["cache_context"] = torch.no_grad
    reg.detach()
    assert transformer.__dict__["cache_context"] is mine


def test_a_pipeline_without_a_scheduler_to_count_is_refused(runner: Runner) -> None:
    with uvr_core.attach(runner.pipe):
        runner.pipe.scheduler = None
        with pytest.raises(uvr_core.UnsupportedRuntime, match="NoneType has no step"):
            runner.run()


def test_a_scheduler_that_is_counted_still_equals_its_class(runner: Runner) -> None:
    """BriaPipeline compares its scheduler's class by `!=`, and scales the latents otherwise."""
    kind, seen = type(runner.pipe.scheduler), []

    def look(pipe: Any, step: int, timestep: object, tensors: dict[str, object]) -> dict[str, object]:
        now = type(pipe.scheduler)
        seen.append((now is kind, now == kind, kind == now, now != kind, kind != now, hash(now) == hash(kind)))
        return tensors

    with uvr_core.attach(runner.pipe):
        runner.run(callback_on_step_end=look)
    assert set(seen) == {(False, True, True, False, False, True)}
    assert type(runner.pipe.scheduler) is kind
