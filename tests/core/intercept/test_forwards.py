"""Root hooks: a forward that misses a tap or raises leaves nothing behind."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch
from runner import Runner, generation_of

import uvr_core
from uvr_plugins.detectors import Oracle


def one_masked() -> np.ndarray:
    """Masks of three samples, the first and last empty."""
    mask = np.zeros((3, 8, 8), bool)
    mask[1, 2:5, 3:6] = True
    return mask


def test_a_skipped_block_raises_and_no_image_comes_out(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    block = runner.pipe.transformer.single_transformer_blocks[1]
    forward = block.forward
    calls = []

    def skipping(hidden_states, encoder_hidden_states, *args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 2:  # what a block cache does at its second step
            return encoder_hidden_states, hidden_states
        return forward(hidden_states, encoder_hidden_states, *args, **kwargs)

    block.forward = skipping
    with uvr_core.attach(runner.pipe, concepts=bank), pytest.raises(uvr_core.TapNotFired, match=r"tap 4 of 4 .*step 1"):
        runner.run()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("bare", [False, True])
def test_an_exception_inside_attention_leaves_nothing_behind(
    runner: Runner, bank: uvr_core.ConceptBank, error: type[BaseException], bare: bool
) -> None:
    stock = runner.run()
    target = runner.pipe.transformer if bare else runner.pipe
    reg = uvr_core.attach(target, concepts=bank, detector=Oracle(one_masked()), policy="block")
    with generation_of(reg):
        regulated = runner.run()
    inner = runner.pipe.transformer.single_transformer_blocks[0].attn.to_v

    def explode(*args: object) -> None:
        raise error("boom")

    handle = inner.register_forward_hook(explode)
    with pytest.raises(error, match="boom"), generation_of(reg):
        runner.run()
    handle.remove()
    with generation_of(reg):
        assert np.array_equal(runner.run(), regulated)
    reg.detach()
    assert np.array_equal(runner.run(), stock)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_single_forward_that_broke_off_does_not_stand_in_the_way_of_the_next(
    runner: Runner, error: type[BaseException]
) -> None:
    stock = runner.run()
    inner = runner.pipe.transformer.single_transformer_blocks[0].attn.to_v

    def explode(*args: object) -> None:
        raise error("boom")

    with uvr_core.attach(runner.pipe.transformer):
        handle = inner.register_forward_hook(explode)
        with pytest.raises(error, match="boom"):
            runner.run()
        handle.remove()
        assert np.array_equal(runner.run(), stock)


def test_text_that_the_adapter_cannot_read_is_a_mismatch(runner: Runner) -> None:
    with uvr_core.attach(runner.pipe.transformer) as reg:
        reads = attrs.evolve(reg.adapter, text=lambda arguments: arguments["no_such_text"])
    with uvr_core.attach(runner.pipe, reads), pytest.raises(uvr_core.AdapterMismatch, match="no_such_text"):
        runner.run()


def test_a_forward_that_draws_nothing_passes_as_it_is_and_is_counted(
    runner: Runner, bank: uvr_core.ConceptBank
) -> None:
    """As one that fills a cache with the references before the first step: here, one at noise level 0."""
    model, seen = runner.pipe.transformer, []
    handle = model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    runner.run(num_inference_steps=1)
    handle.remove()
    drawn = seen[0]
    other = {**drawn, "hidden_states": drawn["hidden_states"] + 1, "timestep": torch.zeros(3)}
    with uvr_core.attach(model) as reg:
        layout = reg.adapter.layout
        adapter = attrs.evolve(reg.adapter, layout=lambda a: layout(a) if a["timestep"].any() else None)
    with torch.no_grad():
        stock = model(**other)[0]
        with uvr_core.attach(model, adapter, concepts=bank, detector=Oracle(one_masked()), policy="block") as reg:
            with reg.generation():
                assert torch.equal(model(**other)[0], stock)
                regulated = model(**drawn)[0]
                report = reg.report
                assert report is not None
                assert (report.steps, report.aside, report.fired) == (1, 1, 4)
                assert "1 forwards before the first step drew nothing" in str(report)
                with pytest.raises(uvr_core.UnsupportedRuntime, match="in step 0 draws nothing"):
                    model(**other)
            with reg.generation():
                model(**{**other, "hidden_states": drawn["hidden_states"]})
                with pytest.raises(uvr_core.UnsupportedRuntime, match="latents of the first step"):
                    model(**drawn)
                model(**{**drawn, "hidden_states": drawn["hidden_states"] + 2})
    assert not torch.equal(regulated, model(**drawn)[0])


def test_a_pipeline_whose_forwards_draw_nothing_is_withheld(runner: Runner) -> None:
    with uvr_core.attach(runner.pipe.transformer) as reg:
        adapter = attrs.evolve(reg.adapter, layout=lambda arguments: None)
    with uvr_core.attach(runner.pipe, adapter), pytest.raises(uvr_core.UVRError, match=r"named .cond. draws nothing"):
        runner.run()
