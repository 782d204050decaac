"""What a forward's attention is handed, and which patches a changed row moves."""

from __future__ import annotations

import pytest
import torch
from conformance import FLUX
from tiny import example

from uvr_core.testing.adapter.record import moved_patches, patches_of_rows, record, run_with

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (2, 3)


@torch.no_grad()
def test_calls_come_in_order_with_their_tokens() -> None:
    flux = example("flux")
    arguments = flux.arguments(SIZE, batch=2)
    taps = FLUX.taps(flux.model)
    calls = record(flux, taps, arguments, SIZE)
    assert [call.path for call in calls] == list(taps)
    assert {tuple(call.query.shape) for call in calls} == {(2, 2, 5 + 6, 16)}  # text and output patches
    assert not any(module._forward_hooks for module in flux.model.modules())


@torch.no_grad()
def test_another_output_takes_its_place() -> None:
    flux = example("flux")
    arguments = flux.arguments(SIZE)
    stock = flux.run(arguments, SIZE)
    taps = FLUX.taps(flux.model)
    assert torch.equal(run_with(lambda call: None, flux, taps, arguments, SIZE), stock)
    assert not torch.equal(run_with(lambda call: call.output * 0, flux, taps, arguments, SIZE), stock)
    assert torch.equal(flux.run(arguments, SIZE), stock)


@torch.no_grad()
def test_a_row_of_the_last_block_moves_its_patch_alone() -> None:
    flux = example("flux")
    last = list(FLUX.taps(flux.model).values())[-1]
    moved = moved_patches(flux, last, flux.arguments(SIZE, 11), SIZE, 11)  # 5 of text, 6 patches
    assert moved.shape == (11, 6)
    assert patches_of_rows(moved) == [[]] * 5 + [[i] for i in range(6)]
