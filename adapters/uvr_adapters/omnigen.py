"""OmniGen, pictures and edits: all that UVR knows about it.

The model's order: text, among it the references where the prompt names them, a time token, output; causal over text,
the output sees all. The adapter's: text, time token, output, references; rows of the negative prompt have none, and
text stands in their place. The model takes latents (B, C, H, W), which it cuts into patches itself, and the scheduler's
time with inverted sigmas, 0 = noise. Guidance always runs, in one batch: [conditional, unconditional], with references
a third part, [references alone]. Prompts of one batch must have references of the same sizes.
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout
from uvr_core.errors import AdapterMismatch

from . import sd3


def layout(arguments: Arguments) -> Layout:
    spans, batch = arguments["input_image_sizes"], len(arguments["hidden_states"])  # {row: [[start, stop] ..]}
    if not spans:
        return Layout(sd3.layout(arguments).grid, padding=1)
    patch, first = arguments["self"].config.patch_size, next(iter(spans.values()))
    sizes = [latents.shape[-2:] for latents in arguments["input_img_latents"]]
    if 3 * len(spans) != 2 * batch or sizes != sizes[: len(first)] * len(spans):
        raise AdapterMismatch("omnigen: the prompts of one batch have different references; draw them one by one")
    plain = Layout(
        sd3.layout(arguments).grid, tuple((rows // patch, columns // patch) for rows, columns in sizes[: len(first)]), 1
    )
    many = plain.image - plain.output

    def order(tokens: int) -> torch.Tensor:
        each = torch.arange(tokens)
        rows = [torch.cat([each[start:stop] for start, stop in spans.get(row, [[0, many]])]) for row in range(batch)]
        return torch.stack([torch.cat([each[~torch.isin(each, row)], row]) for row in rows])

    return Layout(plain.grid, plain.references, 1, order)


def sigma(arguments: Arguments) -> torch.Tensor:
    return 1 - arguments["timestep"]


OMNIGEN = Adapter(
    name="omnigen",
    model="OmniGenTransformer2DModel",
    attention=("layers.*.self_attn",),
    layout=layout,
    time=sigma,
    image_at="end",
    guidance="batched:cui",
    pipelines=("OmniGenPipeline",),
)
