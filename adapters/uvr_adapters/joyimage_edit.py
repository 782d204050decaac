"""JoyImage-Edit, with a source image or without: all that UVR knows about it.

Joint order: output, source, text. The model takes (B, items, C, 1, H, W) with the output as the last item, moves that
to the front, and cuts patches itself; a source is as large as the output. The time argument is t in 0..1000. With
guidance_scale > 1 two passes run, the conditional first, unnamed.
"""

from __future__ import annotations

from uvr_core.adapter import Adapter, Arguments, Layout

from .arguments import sigma_of_thousand, text


def layout(arguments: Arguments) -> Layout:
    states = arguments["hidden_states"]
    _, rows, columns = arguments["self"].config.patch_size
    grid = (states.shape[-2] // rows, states.shape[-1] // columns)
    return Layout(grid, (grid,) * (states.shape[1] - 1 if states.ndim == 6 else 0))


JOYIMAGE_EDIT = Adapter(
    name="joyimage-edit",
    model="JoyImageEditTransformer3DModel",
    attention=("double_blocks.*.attn",),
    layout=layout,
    time=sigma_of_thousand,
    text=text,
    image_at="start",
    guidance="two_pass",
    pipelines=("JoyImageEditPipeline",),
)
