"""Qwen-Image 2.1, with and without source images: all that UVR knows about it.

Text and sources stand in one sequence, as `img_mask` has it, a slot of which is 2 x 2 patches; the output comes last.
The adapter's order: text, output, sources. Text and sources attend in calls of their own; the output sees all, and is
the only query of the call that is regulated. From the second step on the keys of what stands before it come out of a
cache. The time argument is sigma = t / 1000. With true_cfg_scale > 1 and a negative prompt two passes run, named "cond"
and "uncond".
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout

from .arguments import of_all_samples, sigma


def layout(arguments: Arguments) -> Layout:
    each = (tuple(map(tuple, sample)) for sample in arguments["img_shapes"])
    *sources, grid = (shape[1:] for shape in of_all_samples("qwen-image-2.1", each))
    slots, drawn, batch = arguments["img_mask"][0].cpu(), grid[0] * grid[1], len(arguments["hidden_states"])
    images = slots.repeat_interleave(torch.where(slots, 4, 1)).int()

    def order(tokens: int) -> torch.Tensor:
        roles = 2 * images[-tokens:]  # of keys; queries are the output's alone
        roles[-drawn:] = 1  # 0 text, 1 output, 2 source
        return roles.argsort(stable=True).expand(batch, -1)

    return Layout(grid, tuple(sources), order=order if sources else None)


QWEN_IMAGE21 = Adapter(
    name="qwen-image-2.1",
    model="QwenImage21Transformer2DModel",
    attention=("transformer_blocks.*.attn",),
    layout=layout,
    time=sigma,
    text=lambda arguments: int((~arguments["img_mask"][0]).sum()),
    text_output=False,
    guidance="two_pass",
    pipelines=("QwenImage21Pipeline",),
)
