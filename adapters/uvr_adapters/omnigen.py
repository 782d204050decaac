"""OmniGen, pictures and edits: all that UVR knows about it.

The model's order: text, among it the references where the prompt names them, a time token, output; causal over text,
the output sees all. The adapter's: text, time token, output, references; for the negative prompt, which has none, text
stands there. The model cuts latents (B, C, H, W) into patches itself, and takes time with inverted sigmas, 0 = noise.
Guidance always runs, in one batch: [conditional, unconditional], with references a third part, [references alone].
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout
from uvr_core.errors import AdapterMismatch

from .arguments import grid_of, of_latents, sigma_turned


def layout(arguments: Arguments) -> Layout:
    patch, spans = arguments["self"].config.patch_size, arguments["input_image_sizes"]  # {row: [(start, stop) ..]}
    batch, each = len(arguments["hidden_states"]), len(next(iter(spans.values()), ()))
    sizes = [grid_of(latents, patch) for latents in arguments["input_img_latents"]]
    if spans and (3 * len(spans) != 2 * batch or sizes != sizes[:each] * len(spans)):
        raise AdapterMismatch("omnigen: the prompts of one batch have different references; draw them one by one")
    plain = Layout(of_latents(arguments).grid, tuple(sizes[:each]), padding=1)

    def order(tokens: int) -> torch.Tensor:
        every, nowhere = torch.arange(tokens), [(0, plain.image - plain.output)]
        rows = [torch.cat([every[slice(*span)] for span in spans.get(row, nowhere)]) for row in range(batch)]
        return torch.stack([torch.cat([every[~torch.isin(every, row)], row]) for row in rows])

    return Layout(plain.grid, plain.references, 1, order) if spans else plain


OMNIGEN = Adapter(
    name="omnigen",
    model="OmniGenTransformer2DModel",
    attention=("layers.*.self_attn",),
    layout=layout,
    time=sigma_turned,
    image_at="end",
    guidance="batched:cui",
    pipelines=("OmniGenPipeline",),
)
