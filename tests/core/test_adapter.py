"""A model family as data: whom it recognises, which modules it taps, what it refuses."""

from __future__ import annotations

from typing import Any

import attrs
import diffusers
import pytest
import torch

from uvr_core.adapter import Adapter, Layout
from uvr_core.errors import AdapterMismatch
from uvr_core.plugins import registry

FLUX = registry().get("adapter", "flux")


class Blocks(torch.nn.Module):
    """Ten double-stream and two single-stream blocks, each with an attention; one more attention elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        block = lambda: torch.nn.ModuleDict({"attn": torch.nn.Identity(), "ff": torch.nn.Identity()})  # noqa: E731
        self.single_transformer_blocks = torch.nn.ModuleList(block() for _ in range(2))
        self.transformer_blocks = torch.nn.ModuleList(block() for _ in range(11))
        self.refiner = torch.nn.ModuleDict({"attn": torch.nn.Identity()})


def test_taps_are_numbered_in_order_of_execution() -> None:
    """Pattern by pattern, though the model holds the single-stream blocks first; block 10 comes after block 9."""
    taps = FLUX.taps(Blocks())
    double = [f"transformer_blocks.{number}.attn" for number in range(11)]
    single = [f"single_transformer_blocks.{number}.attn" for number in range(2)]
    assert list(taps) == double + single
    assert list(FLUX.probe_paths(Blocks())) == single
    assert list(attrs.evolve(FLUX, probes=()).probe_paths(Blocks())) == double + single


def test_a_pattern_matches_whole_paths_and_one_element_a_star() -> None:
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"attn": torch.nn.ModuleDict({"attn": torch.nn.ReLU()})})])
    assert list(attrs.evolve(FLUX, attention=("blocks.*.attn",)).taps(model)) == ["blocks.0.attn"]


def test_a_pattern_that_matches_nothing_is_named() -> None:
    adapter = attrs.evolve(FLUX, attention=("transformer_blocks.*.attn", "double_blocks.*.attn"))
    with pytest.raises(AdapterMismatch, match=r"no module matches 'double_blocks.\*.attn' \(11 modules matched"):
        adapter.taps(Blocks())


def test_subclasses_are_recognised_and_others_are_not() -> None:
    base = type("FluxTransformer2DModel", (torch.nn.Module,), {})
    assert FLUX.recognises(type("Mine", (base,), {})())
    assert not FLUX.recognises(Blocks())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"attention": ()}, AdapterMismatch),
        ({"attention": ("",)}, AdapterMismatch),
        ({"image_at": "middle"}, ValueError),
        ({"guidance": "batched"}, AdapterMismatch),
        ({"guidance": "batched:ui"}, AdapterMismatch),
        ({"guidance": "batched:cuc"}, AdapterMismatch),
        ({"guidance": "batched:cx"}, AdapterMismatch),
        ({"routes": ("pooled text",)}, TypeError),
    ],
)
def test_values_that_the_engine_could_not_use_are_refused(change: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(change))):
        attrs.evolve(FLUX, **change)


def test_sources_are_shown_by_the_pipelines_that_are_listed() -> None:
    class Kontext(diffusers.FluxKontextPipeline):
        pass

    class Other(diffusers.FluxKontextPipeline):
        def __call__(self) -> None: ...

    assert FLUX.shows_sources(Kontext)
    assert not FLUX.shows_sources(Other)
    assert not FLUX.shows_sources(diffusers.FluxPipeline)
    assert set(FLUX.edits) < set(FLUX.pipelines)


def test_public_names() -> None:
    import uvr_core

    assert uvr_core.Adapter is Adapter
    assert uvr_core.Layout is Layout


def test_counts_of_a_layout_follow_from_its_grids() -> None:
    layout = Layout((8, 8), ((4, 6), (2, 2)), padding=3)
    assert (layout.output, layout.image) == (64, 64 + 24 + 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"grid": (8, 0)},
        {"grid": (8,)},
        {"grid": 64},
        {"grid": (8.0, 8)},
        {"references": ((4, -6),)},
        {"references": (24,)},
        {"padding": -1},
    ],
)
def test_a_layout_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(AdapterMismatch, match=f"Layout.{next(iter(wrong))}: expected"):
        Layout(**{"grid": (8, 8), **wrong})
