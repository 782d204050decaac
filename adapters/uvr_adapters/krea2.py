"""Krea 2: all that UVR knows about it.

Joint order: text, output, in one stream; the text is fused out of several layers of its encoder before, and padded
text is masked. `position_ids` is (T + N, 3): the last rows hold row and column of the patches. Queries are grouped, and
a gate follows the attention. The time argument is sigma = t / 1000. With guidance_scale > 0 two passes run, the
conditional first, unnamed.
"""

from __future__ import annotations

from uvr_core.adapter import Adapter, Arguments, Layout

from .arguments import sigma, text


def layout(arguments: Arguments) -> Layout:
    ids = arguments["position_ids"][-arguments["hidden_states"].shape[1] :]
    height, width = (int(n) for n in (ids[:, 1:].amax(0) - ids[:, 1:].amin(0) + 1).tolist())
    return Layout((height, width))


KREA2 = Adapter(
    name="krea2",
    model="Krea2Transformer2DModel",
    attention=("transformer_blocks.*.attn",),
    layout=layout,
    time=sigma,
    text=text,
    guidance="two_pass",
    pipelines=("Krea2Pipeline",),
)
