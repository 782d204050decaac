"""Ideogram 4: all that UVR knows about it.

Joint order: padding, text, output, in one stream; padding is masked and counts as text. `indicator` marks text (3) and
output (2), `position_ids` holds (t, row, column). The time argument is turned round, 1 - t / 1000. The unconditional
pass runs on a transformer of its own, over the picture alone, which stays stock.
"""

from __future__ import annotations

from uvr_core.adapter import Adapter, Arguments, Layout
from uvr_core.errors import AdapterMismatch

from .arguments import sigma_turned

IMAGE = 2  # in `indicator`


def layout(arguments: Arguments) -> Layout:
    counts = set((arguments["indicator"] == IMAGE).sum(1).tolist())
    if len(counts) > 1:
        raise AdapterMismatch(
            f"ideogram4: the pictures of one batch have {sorted(counts)} patches: draw them one by one"
        )
    ids = arguments["position_ids"][0, -counts.pop() :, 1:]
    height, width = (int(n) for n in (ids.amax(0) - ids.amin(0) + 1).tolist())
    return Layout((height, width))


IDEOGRAM4 = Adapter(
    name="ideogram4",
    model="Ideogram4Transformer2DModel",
    attention=("layers.*.attention",),
    layout=layout,
    time=sigma_turned,
    guidance="single",
    pipelines=("Ideogram4Pipeline",),
)
