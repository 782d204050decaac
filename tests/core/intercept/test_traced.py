"""The operation behind compiled taps: Python runs in it, it changes the output alone, and only within a forward."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from runner import Runner
from torch._dynamo.utils import counters

import uvr_core
from uvr_core import TapNotFired, UnsupportedRuntime
from uvr_core.intercept import forwards
from uvr_core.intercept.calls import AttentionCall
from uvr_core.intercept.traced import observing, tap


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    torch._dynamo.reset()
    counters.clear()


def test_what_an_observer_makes_of_a_call_is_put_into_the_output() -> None:
    q, k, v, out = (torch.randn(1, 2, 5, 8) for _ in range(4))
    stock, seen = out.clone(), []

    def observer(call: AttentionCall) -> torch.Tensor | None:
        seen.append(call)
        return call.output + 1 if len(seen) > 1 else None

    token = observing.set(observer)
    try:
        tap(q, k, v, out, None, 0.5)
        assert torch.equal(out, stock)
        tap(q, k, v, out, None, 0.5)
    finally:
        observing.reset(token)
    assert torch.equal(out, stock + 1)
    assert torch.equal(seen[1].query, q)
    assert (seen[1].attn_mask, seen[1].scale) == (None, 0.5)


def test_without_a_forward_in_this_thread_it_is_refused() -> None:
    x = torch.zeros(1, 1, 2, 8)
    token, errors = observing.set(lambda call: None), []

    def elsewhere() -> None:
        try:
            tap(x, x, x, x, None, None)
        except UnsupportedRuntime as error:
            errors.append(str(error))

    try:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    finally:
        observing.reset(token)
    assert "ran outside a call of the transformer" in errors[0]


def test_inductor_leaves_it_out_of_cuda_graphs() -> None:
    """The graphs would play kernels back, and no Python; that they are split here is torch's own promise."""
    if hasattr(torch.Tag, "cudagraph_unsafe"):
        assert torch.Tag.cudagraph_unsafe in torch.ops.uvr.tap.default.tags
    assert [tensor.alias_info is not None for tensor in torch.ops.uvr.tap.default._schema.arguments[:4]] == [
        False, False, False, True,
    ]  # fmt: skip


def test_a_compiled_block_that_runs_by_itself_is_refused(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    seen: list[tuple[tuple[object, ...], dict[str, object]]] = []
    block = runner.pipe.transformer.single_transformer_blocks[0]
    handle = block.register_forward_pre_hook(lambda m, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    runner.run(num_inference_steps=1)
    handle.remove()
    block.compile(backend="eager", fullgraph=True)
    args, kwargs = seen[0]
    with uvr_core.attach(runner.pipe, concepts=bank, threshold=9.0), torch.no_grad():
        runner.run(num_inference_steps=1)
        with pytest.raises(UnsupportedRuntime, match="ran outside a call of the transformer"):
            block(*args, **kwargs)
    with torch.no_grad():
        block(*args, **kwargs)


def test_graphs_that_play_back_without_python_withhold_the_images(
    runner: Runner, bank: uvr_core.ConceptBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA graphs would that hold the operation: no tap fires."""
    runner.pipe.transformer.compile(backend="eager", fullgraph=True)
    with uvr_core.attach(runner.pipe, concepts=bank, threshold=9.0):
        runner.run(num_inference_steps=1)
        monkeypatch.setattr(forwards, "intervene", lambda *call: None)
        with pytest.raises(TapNotFired, match="tap 1 of 4"):
            runner.run(num_inference_steps=1)


def test_a_hook_of_others_on_compiled_attention_is_refused(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    transformer = runner.pipe.transformer
    handle = transformer.transformer_blocks[0].attn.register_forward_hook(lambda m, a, out: None)
    with uvr_core.attach(runner.pipe, concepts=bank, threshold=9.0):
        runner.run(num_inference_steps=1)
        transformer.compile(backend="eager")
        with pytest.raises(UnsupportedRuntime, match="a forward hook of others"):
            runner.run(num_inference_steps=1)
    handle.remove()
