"""Rows of the last block reach their own patches and no others, on every pipeline class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pipelines import (
    EDITING,
    PATCHES,
    PIPELINES,
    Tiny,
    masks_of,
)

import uvr_core
from uvr_core.adapter import Layout
from uvr_core.engine.readings import features
from uvr_core.intercept.calls import AttentionCall
from uvr_core.intercept.taps import Taps

pytestmark = pytest.mark.usefixtures("one_thread")


def tap_at(model: Tiny, path: str, observer: Callable[[AttentionCall], torch.Tensor | None]) -> Taps:
    module = model.pipe.transformer.get_submodule(path)
    return Taps({path: module}, observer).seat()


def moved_tokens(model: Tiny, row: Callable[[int], int]) -> list[list[int]]:
    """Which tokens of each sample's prediction change when one row of the last block's attention output does.

    The row is `row(number of queries)`, of the second sample.
    """
    stock = model.forward()

    def nudge(call: AttentionCall) -> torch.Tensor:
        output = call.output.clone()
        output[1, :, row(output.shape[2])] += 1.0
        return output

    taps = tap_at(model, model.taps[-1], nudge)
    try:
        nudged = model.forward()
    finally:
        taps.remove()
    return [np.flatnonzero(sample).tolist() for sample in (nudged != stock).any(-1)]


def first_row(model: Tiny, queries: int) -> int:
    """Of the output span; written out once more, so that the engine is not its own witness."""
    return 0 if model.name == "sd3" else queries - (2 if model.name in EDITING else 1) * PATCHES


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", PIPELINES)
def test_an_output_row_of_the_last_block_moves_its_own_patch_and_no_other(
    tiny: Callable[[str], Tiny], name: str
) -> None:
    model = tiny(name)
    for patch in (0, 1, 8, 29, 63):
        assert moved_tokens(model, lambda n, p=patch: first_row(model, n) + p) == [[], [patch], []]


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", EDITING)
def test_a_reference_row_of_the_last_block_moves_no_output_patch(tiny: Callable[[str], Tiny], name: str) -> None:
    model = tiny(name)
    for patch in (0, 29, 63):
        row = PATCHES + patch
        assert moved_tokens(model, lambda n, r=row: first_row(model, n) + r) == [[], [row], []]


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", PIPELINES)
def test_a_text_row_of_the_last_block_moves_nothing(tiny: Callable[[str], Tiny], name: str) -> None:
    model = tiny(name)
    for row in (0, 3):
        assert moved_tokens(model, lambda n, r=row: PATCHES + r if name == "sd3" else r) == [[], [], []]


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", PIPELINES)
def test_the_engine_hands_out_and_writes_those_rows(tiny: Callable[[str], Tiny], name: str) -> None:
    """Recorded features are the rows of the span above, in order, and beside each the reference row that faces it; the
    adapter's counts and grids are the true ones."""
    model = tiny(name)
    assert model.layout() == Layout((8, 8), ((8, 8),) if name in EDITING else ())
    calls: list[AttentionCall] = []
    taps = tap_at(model, model.taps[-1], lambda call: calls.append(call))
    model.forward()
    taps.remove()
    recorded: list[torch.Tensor] = []
    with uvr_core.attach(model.pipe.transformer) as reg:
        with reg.recording(lambda call: recorded.append(features(call)), [model.taps[-1]]):
            model.forward()
    first = first_row(model, calls[0].output.shape[2])
    rows = calls[0].output[:, :, first : first + PATCHES].transpose(1, 2).flatten(2)
    if name in EDITING:
        facing = calls[0].output[:, :, first + PATCHES : first + 2 * PATCHES].transpose(1, 2).flatten(2)
        rows = torch.cat([rows, facing], -1)
    assert len(recorded) == 1
    assert torch.equal(recorded[0], rows)


def shift_values(model: Tiny, role: str) -> Any:
    """Add 1 to the values of the last block's text or reference tokens; returns the handle that takes it back."""
    attention = model.pipe.transformer.get_submodule(model.taps[-1])
    if model.adapter.name == "flux":  # single-stream: one projection for text, output and reference
        projection = attention.to_v
        first = first_row(model, model.called()["encoder_hidden_states"].shape[1] + model.layout().image)
        rows = slice(0, first) if role == "text" else slice(first + PATCHES, None)
    else:
        projection = attention.add_v_proj if role == "text" else attention.to_v
        rows = slice(None) if role == "text" else slice(PATCHES, None)

    def shift(module: torch.nn.Module, args: object, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[:, rows] += 1.0
        return out

    return projection.register_forward_hook(shift)


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize(("name", "role"), [(n, "text") for n in PIPELINES] + [(n, "reference") for n in EDITING])
def test_a_blocked_patch_receives_no_text_and_no_reference(tiny: Callable[[str], Tiny], name: str, role: str) -> None:
    """The values of those tokens in the last block change: only under "block" do the located patches not."""
    model = tiny(name)
    located = torch.zeros(3, 8, 8, dtype=torch.bool)
    located[1, 1:6, 2:7] = True  # with its ring
    located = located.flatten(1)
    moved = {}
    for policy in ("observe", "block"):
        with model.attach(masks_of(0, 1, 2), policy, to=model.pipe.transformer):
            before = model.forward()
            handle = shift_values(model, role)
            try:
                after = model.forward()
            finally:
                handle.remove()
        moved[policy] = (after - before).abs().amax(-1)[:, :PATCHES]
    assert moved["observe"][located].max() > 1e-3
    assert moved["block"][located].max() < 1e-6
    assert torch.equal(moved["block"][[0, 2]], moved["observe"][[0, 2]])
    assert (moved["block"][1][~located[1]] > 1e-3).any()
