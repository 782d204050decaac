"""JoyImage-Edit-Plus, with any number of source images: all that UVR knows about it.

Joint order: output, sources, text. The model takes patches, and in `shape_list` per sample the (frames, rows, columns)
of the output and of each source; patches that fill a sample up to the longest of its batch, and padded text, are
masked. Samples of different shapes are refused. The time argument is t in 0..1000. Guidance runs in one batch,
[unconditional, conditional].
"""

from __future__ import annotations

from uvr_core.adapter import Adapter, Arguments, Layout

from .arguments import of_all_samples, sigma_of_thousand, text


def layout(arguments: Arguments) -> Layout:
    each = (tuple(shape[1:] for shape in sample) for sample in arguments["shape_list"])
    grid, *references = of_all_samples("joyimage-edit-plus", each)
    return Layout(grid, tuple(references))


JOYIMAGE_EDIT_PLUS = Adapter(
    name="joyimage-edit-plus",
    model="JoyImageEditPlusTransformer3DModel",
    attention=("double_blocks.*.attn",),
    layout=layout,
    time=sigma_of_thousand,
    text=text,
    image_at="start",
    guidance="batched:uc",
    pipelines=("JoyImageEditPlusPipeline",),
)
