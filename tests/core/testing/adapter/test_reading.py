"""An adapter that misreads its model is caught by the check that is there for it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import attrs
import pytest
from conformance import FLUX, QWEN, SD3, failed
from tiny import example

from uvr_core.adapter import Adapter, Arguments, Layout
from uvr_core.testing import check_adapter

pytestmark = pytest.mark.usefixtures("one_thread")


def swapped(layout: Callable[[Arguments], Layout]) -> Callable[[Arguments], Layout]:
    def wrong(arguments: Arguments) -> Layout:
        right = layout(arguments)
        return attrs.evolve(right, grid=right.grid[::-1])

    return wrong


def without_references(layout: Callable[[Arguments], Layout]) -> Callable[[Arguments], Layout]:
    def wrong(arguments: Arguments) -> Layout:
        right = layout(arguments)
        return Layout(right.grid)

    return wrong


def flux(**changes: object) -> Adapter:
    return attrs.evolve(FLUX, **changes)


def sd3(**changes: object) -> Adapter:
    return attrs.evolve(SD3, **changes)


def qwen(**changes: object) -> Adapter:
    return attrs.evolve(QWEN, **changes)


DOUBLE, DUAL = "transformer_blocks.*.attn", "transformer_blocks.*.attn2"
BROKEN = {
    "references forgotten": (
        "qwen-image",
        qwen(layout=without_references(QWEN.layout)),
        {"layout", "text-span", "last-block"},
    ),
    "a stream of blocks missing": ("flux", flux(attention=(DOUBLE,), probes=()), {"no-block-missed"}),
    "one block missing": (
        "qwen-image",
        qwen(attention=("transformer_blocks.0.attn",)),
        {"no-block-missed", "last-block"},
    ),
    "blocks in the wrong order": ("flux", flux(attention=FLUX.attention[::-1]), {"execution-order"}),
    "image-only attention tapped": ("sd3", sd3(attention=(DOUBLE, DUAL)), {"taps-fire-once"}),
    "no such blocks": ("sd3", sd3(attention=("blocks.*.attn",)), {"taps-fire-once", "execution-order"}),
    "probes that are no taps": ("flux", flux(probes=("single_blocks.*.attn",)), {"probes"}),
    "time in thousandths": ("flux", flux(time=lambda a: a["timestep"] / 1000), {"time"}),
    "time not scaled": ("sd3", sd3(time=lambda a: a["timestep"]), {"time"}),
    "time turned round": ("qwen-image", qwen(time=lambda a: 1 - a["timestep"]), {"time"}),
    "time of one sample": ("sd3", sd3(time=lambda a: a["timestep"][:1] / 1000), {"time"}),
    "rows and columns swapped": ("sd3", sd3(layout=swapped(SD3.layout)), {"layout"}),
    "no text among the queries": ("flux", flux(text_output=False), {"text-span"}),
    "another class": ("flux", flux(model="FluxModel"), {"recognised", "taps-fire-once"}),
    "an argument that is not there": ("flux", flux(time=lambda a: a["sigmas"]), {"time", "no-edit"}),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_adapter_is_caught(fault: str) -> None:
    name, adapter, wanted = BROKEN[fault]
    failures = failed(check_adapter, adapter, functools.partial(example, name))
    assert wanted <= set(failures), failures


def test_faults_are_told_apart() -> None:
    """A fault that one check is there for fails that check alone."""
    for fault in ("blocks in the wrong order", "probes that are no taps", "time in thousandths"):
        name, adapter, wanted = BROKEN[fault]
        failures = set(failed(check_adapter, adapter, functools.partial(example, name)))
        beside = {"last-block", "edit-lands", "text-route"} if "order" in fault else set()
        assert wanted <= failures <= wanted | beside, fault
