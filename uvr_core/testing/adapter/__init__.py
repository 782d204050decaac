"""check_adapter: an adapter against a small model of its class."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch

from ...adapter import Adapter
from ..example import Example
from ..suite import Conformance, checks_of, refuse_name, run_checks
from .guidance import Guidance
from .placement import Placement
from .published import PublishedSize
from .reading import Reading
from .text import Text
from .untouched import Untouched


def check_adapter(
    adapter: Adapter,
    make_example: Callable[[], Example],
    *,
    published: Callable[[], Example] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Conformance:
    """Hold an adapter against a small model of its class.

    Where tokens lie is found out, not believed: a row of a block's attention output is changed in its tap, and the
    output patch that moves first is the one that this row holds.

    Args:
        adapter: the adapter.
        make_example: () -> a fresh Example.
        published: () -> an Example at the released size, its model on the meta device and `inputs` on the CPU: one
            forward of 64 x 64 patches, for which no memory is needed.
        expected_failures: {check: reason}. The checks: recognised, taps-fire-once, execution-order, no-block-missed,
            probes, layout, time, text-span, last-block, earlier-blocks, edit-lands, ragged, text-route, neutral-edit,
            no-edit, detach, guidance, guidance-parts, published-size.

    Raises:
        ConformanceError: a check failed, or an expected failure did not; all are listed, and `report` holds them.
        UVRError: `expected_failures` names no check, or `adapter` is a name or a class.
    """
    refuse_name("adapter", adapter)
    concerns = [concern(adapter, make_example) for concern in (Reading, Placement, Text, Untouched, Guidance)]
    checks = checks_of(*concerns, PublishedSize(adapter, make_example, published))
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        torch.manual_seed(0)
        return run_checks(f"adapter {adapter.name!r} on {adapter.model}", checks, expected_failures)
