"""Guidance: the conditional part is regulated, the unconditional one is left alone, on every pipeline class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from driven import spied
from pipelines import (
    ACTING,
    EDITING,
    PATCHES,
    PIPELINES,
    STEPS,
    Tiny,
    identical,
    masks_of,
)

import uvr_core
from uvr_core.intercept.calls import AttentionCall
from uvr_core.intercept.ledger import Run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", ["sd3"])
@pytest.mark.parametrize("policy", [p for p, guided in ACTING if guided])
def test_the_unconditional_half_of_a_batch_is_left_alone(tiny: Callable[[str], Tiny], name: str, policy: str) -> None:
    model, seen = tiny(name), []
    handle = model.pipe.transformer.register_forward_hook(lambda m, a, out: seen.append(out[0].clone()))
    try:
        model.run(guided=True)
        stock = seen[0]
        seen.clear()
        with model.attach(masks_of(0, 1, 2), policy):
            model.run(guided=True)
    finally:
        handle.remove()
    assert stock.shape[0] == 6
    assert torch.equal(seen[0][:3], stock[:3])
    assert identical(seen[0][3:].numpy(), stock[3:].numpy()) == [True, False, True]


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", [n for n in PIPELINES if n != "sd3"])
def test_the_negative_pass_is_left_alone(tiny: Callable[[str], Tiny], name: str) -> None:
    """The first pass of each step follows the prompt; the second gives what the stock model gives for its input."""
    model, seen = tiny(name), []
    transformer = model.pipe.transformer

    def keep(module: torch.nn.Module, args: object, kwargs: dict[str, Any], out: Any) -> None:
        seen.append((kwargs, out[0].clone()))

    handle = transformer.register_forward_hook(keep, with_kwargs=True)
    try:
        with model.attach(masks_of(0, 1, 2), "block"):
            model.run(guided=True)
    finally:
        handle.remove()
    assert len(seen) == 2 * STEPS
    with torch.no_grad():
        same = [identical(transformer(**kwargs)[0].numpy(), out.numpy()) for kwargs, out in seen]
    assert same == [[True, False, True], [True, True, True]] * STEPS


def bias_of(call: AttentionCall, rows: slice) -> torch.Tensor:
    """(B, 1, N, keys) additive mask of a call's output rows, in float64."""
    keep = torch.ones((), dtype=torch.bool) if call.attn_mask is None else call.attn_mask
    assert keep.dtype == torch.bool
    full = keep.expand(len(call.query), 1, call.query.shape[2], call.key.shape[2])[:, :, rows]
    return torch.zeros(full.shape, dtype=torch.float64).masked_fill(~full, -torch.inf)


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", PIPELINES)
def test_redirected_rows_see_the_unconditional_text(tiny: Callable[[str], Tiny], name: str) -> None:
    """In every block and step: softmax by hand over the rows' own image keys and the other pass's text."""
    model = tiny(name)
    with model.attach(masks_of(0, 1, 2), "redirect") as reg:
        calls = spied(reg)
        model.run(guided=True)
    blocks, batched = len(model.taps), name == "sd3"
    passes = [calls[i : i + blocks] for i in range(0, len(calls), blocks)]
    assert len(passes) == STEPS * (1 if batched else 2)
    located = torch.zeros(8, 8, dtype=torch.bool)
    located[1:6, 2:7] = True  # with the ring
    checked, lengths = 0, set()
    for step in range(STEPS):
        for block in range(blocks):
            call, edited = passes[step if batched else 2 * step][block]
            other = call if batched else passes[2 * step - 1][block][0] if step else None
            if edited is None:
                assert step == 0, "before the probe"
                continue
            mine, theirs = (4, 1) if batched else (1, 1)  # the second sample, in its half
            first = first_row(model, call.query.shape[2])
            image = slice(first, first + (2 if name in EDITING else 1) * PATCHES)
            rows = slice(first, first + PATCHES)
            k, v, bias = (
                [call.key[mine, :, image]],
                [call.value[mine, :, image]],
                [bias_of(call, rows)[mine, :, :, image]],
            )
            if other is not None:
                begin = first_row(model, other.query.shape[2])
                text = slice(PATCHES, None) if batched else slice(0, begin)
                k.append(other.key[theirs, :, text])
                v.append(other.value[theirs, :, text])
                bias.append(bias_of(other, slice(begin, begin + PATCHES))[theirs, :, :, text])
                lengths.add((call.key.shape[2], other.key.shape[2]))
            q = call.query[mine, :, rows].double()
            logits = q @ torch.cat(k, 1).double().mT * q.shape[-1] ** -0.5 + torch.cat(bias, -1)
            expected = logits.softmax(-1) @ torch.cat(v, 1).double()
            error = (edited[mine, :, rows].double() - expected).abs().amax((0, 2))
            assert error[located.flatten()].max() < 5e-6
            changed = (edited[mine] != call.output[mine]).any(-1).any(0)
            assert changed[rows][located.flatten()].any()
            assert changed.sum() == changed[rows][located.flatten()].sum()
            checked += 1
    assert checked >= blocks
    if name.startswith("qwen"):
        assert any(own != others for own, others in lengths), "the two passes' texts differ in length"


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", PIPELINES)
def test_redirect_without_guidance_withholds_the_images(tiny: Callable[[str], Tiny], name: str) -> None:
    model = tiny(name)
    step = 0 if name == "sd3" else 1
    with model.attach(masks_of(0, 1, 2), "redirect") as reg:
        for _ in range(2):
            with pytest.raises(uvr_core.UVRError, match=rf"unconditional pass.* at step {step}: turn guidance on"):
                model.run()
        assert reg.report is None
        assert model.run(guided=True).shape == (3, 64, 64, 3)


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", ["sd3"])
def test_a_bare_transformer_regulates_both_halves_of_a_batch(tiny: Callable[[str], Tiny], name: str) -> None:
    """No pipeline tells which half follows the prompt: both are restricted where something is located."""
    model, seen = tiny(name), []
    transformer = model.pipe.transformer
    handle = transformer.register_forward_hook(lambda m, a, out: seen.append(out[0].clone()))
    masks = np.concatenate([masks_of(0, 1, 2), masks_of(0, 1, 2)])
    try:
        model.run(guided=True)
        stock = seen[0]
        seen.clear()
        with model.attach(masks, "block", to=transformer) as reg:
            model.run(guided=True)
            findings = reg.report.findings
    finally:
        handle.remove()
    assert identical(seen[0].numpy(), stock.numpy()) == [True, False, True, True, False, True]
    assert [f.located for f in findings] == [False, True, False] * 2
    assert [f.steps_regulated for f in findings] == [0, STEPS, 0] * 2
    with (
        model.attach(masks, "redirect", to=transformer),
        pytest.raises(uvr_core.UVRError, match="not to its transformer"),
    ):
        model.run(guided=True)


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("attached_to", ["pipeline", "transformer"])
@pytest.mark.parametrize("name", ["flux", "qwen-image", "qwen-image-edit"])
def test_a_pass_named_uncond_is_left_alone_even_when_it_comes_first(
    tiny: Callable[[str], Tiny], name: str, attached_to: str
) -> None:
    model = tiny(name)
    transformer = model.pipe.transformer
    stock = model.forward()

    def both_passes() -> dict[str, torch.Tensor]:
        predictions = {}
        for branch in ("uncond", "cond"):
            with transformer.cache_context(branch), torch.no_grad():
                predictions[branch] = transformer(**model.called())[0]
        return predictions

    if attached_to == "transformer":
        with model.attach(masks_of(0, 1, 2), "block", to=transformer) as reg, reg.generation():
            predictions = both_passes()
    else:  # inside a pipeline's run, which a pipeline with the opposite order of passes would open
        with model.attach(masks_of(0, 1, 2), "block") as reg:
            reg._interceptor._current.set(reg._begin(Run(reg.taps)))
            predictions = both_passes()
    assert identical(predictions["uncond"].numpy(), stock.numpy()) == [True, True, True]
    assert identical(predictions["cond"].numpy(), stock.numpy()) == [True, False, True]


def first_row(model: Tiny, queries: int) -> int:
    """Of the output span; written out once more, so that the engine is not its own witness."""
    return 0 if model.name == "sd3" else queries - (2 if model.name in EDITING else 1) * PATCHES
