"""FLUX.1 (dev, schnell, Fill, Control, ControlNet, with Redux) and FLUX.1 Kontext: all that UVR knows about them.

Joint order: text, output, reference. Double-stream blocks first, then single-stream blocks. `img_ids` is (I, 3):
column 0 tells output (0) from reference (1, Kontext), columns 1 and 2 are row and column of the patch. The time
argument is sigma = t / 1000. Guidance is distilled; with true_cfg_scale > 1 two passes run, the conditional first;
FluxPipeline names them, Kontext does not.
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout, TextRoute
from uvr_core.errors import AdapterMismatch


def layout(arguments: Arguments) -> Layout:
    ids = arguments["img_ids"].cpu()  # one host sync, not one for each number
    ids = ids[0] if ids.ndim == 3 else ids
    numbers, counts = ids[:, 0].unique_consecutive(return_counts=True)
    images = ids.split(counts.tolist())
    grids = [tuple(int(n) for n in (part[:, 1:3].amax(0) - part[:, 1:3].amin(0) + 1).tolist()) for part in images]
    numbered = torch.equal(numbers, numbers.round()) and bool((numbers.diff() > 0).all())
    if not numbered or not all(map(_row_major, images, grids)):
        raise AdapterMismatch(
            f"img_ids of {len(ids)} tokens are no grids, row by row: the first of {len(images)} images has "
            f"{[len(part) for part in images[:4]]} patches and spans {grids[:4]}"
        )
    return Layout(grids[0], tuple(grids[1:]))


def _row_major(part: torch.Tensor, grid: tuple[int, int]) -> bool:
    """Whether positions (N, 3 or more) are those of a grid, row by row."""
    height, width = grid
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(part.dtype)
    return height * width == len(part) and torch.equal(part[:, 1:3] - part[:, 1:3].amin(0), places)


def text(arguments: Arguments) -> int:
    return arguments["encoder_hidden_states"].shape[1]


def sigma(arguments: Arguments) -> torch.Tensor:
    return arguments["timestep"]


FLUX = Adapter(
    name="flux",
    model="FluxTransformer2DModel",
    attention=("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
    probes=("single_transformer_blocks.*.attn",),
    layout=layout,
    time=sigma,
    text=text,
    image_at="end",
    guidance="two_pass",
    tokenizers=("tokenizer_2",),
    routes=(TextRoute("pooled text", "CLIP's embedding of the prompt modulates every block", ("pooled_projections",)),),
    pipelines=(
        *("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxFillPipeline"),
        *("FluxKontextPipeline", "FluxKontextInpaintPipeline"),
        *("FluxControlPipeline", "FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline"),
        *("FluxControlNetPipeline", "FluxControlNetImg2ImgPipeline", "FluxControlNetInpaintPipeline"),
    ),
    edits=("FluxKontextPipeline",),
)
