"""One forward of an example, with every attention call of some modules handed out: what they see, what they return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ...intercept.calls import AttentionCall
from ...intercept.taps import Taps
from ..example import Example, Size


def run_with(
    on_call: Callable[[AttentionCall], torch.Tensor | None],
    example: Example,
    modules: Mapping[str, nn.Module],
    arguments: dict[str, Any],
    size: Size,
) -> torch.Tensor:
    """One forward -> (B, N, C). `on_call` sees every attention call of the modules, and may return another output."""
    taps = Taps(modules, on_call).seat()
    try:
        return example.run(arguments, size)
    finally:
        taps.remove()


def record(
    example: Example, modules: Mapping[str, nn.Module], arguments: dict[str, Any], size: Size
) -> list[AttentionCall]:
    """Every attention call of these modules in one forward, in order."""
    calls: list[AttentionCall] = []
    run_with(calls.append, example, modules, arguments, size)
    return calls


def moved_patches(
    example: Example, module: nn.Module, arguments: dict[str, Any], size: Size, rows: int, strength: float = 0.05
) -> torch.Tensor:
    """(rows, N): the largest change of each output patch in sample b when row b of the module's attention output,
    in the call with that many queries, is changed by `strength` deviations in a random direction.

    Args:
        arguments: of one forward with `rows` samples.
    """

    def change_rows(call: AttentionCall) -> torch.Tensor | None:
        if call.query.shape[2] != rows:
            return None
        output = call.output.clone()  # (B, H, rows, D)
        each = torch.arange(rows)
        direction = torch.randn(output.shape[1], output.shape[3])
        output[each, :, each] += strength * output.std() * direction
        return output

    stock = example.run(arguments, size)
    changed = run_with(change_rows, example, {"": module}, arguments, size)
    return (changed - stock).abs().amax(-1)


def patches_of_rows(moved: torch.Tensor) -> list[list[int]]:
    """(rows, N) -> for each row the patches that it moves, rounding aside."""
    return [row.nonzero().flatten().tolist() for row in moved > 1e-3 * moved.max()]
