"""Z-Image (Turbo, base, img2img, inpaint, ControlNet) and Z-Image Omni: all that UVR knows about them.

Joint order: output, its padding to a multiple of 32, caption. The model takes a list of latents (C, F, H, W), one per
sample. The time argument is turned round, 1 - t / 1000. Guidance runs in one batch, [conditional, unconditional], until
cfg_truncation ends it. Omni takes lists of latents, sources before the output, and captions between them that come
first in the sequence: brought into the order output, sources, padding, captions and what SigLIP sees of the sources.
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout
from uvr_core.errors import AdapterMismatch


def layout(arguments: Arguments) -> Layout:
    patch, samples = arguments.get("patch_size", 2), arguments["x"]
    omni = isinstance(samples[0], list)
    shapes = {tuple(latent.shape for latent in (sample if omni else [sample])) for sample in samples}
    if len(shapes) > 1:
        raise AdapterMismatch(f"z-image: the images of one batch have different sizes: {sorted(shapes)}")
    *sources, grid = ((shape[-2] // patch, shape[-1] // patch) for shape in shapes.pop())
    pictures = [(1, size) for size in sources] + [(0, grid)]
    padding = sum(-height * width % 32 for _, (height, width) in pictures)

    def order(tokens: int) -> torch.Tensor:
        roles = torch.full((len(samples), tokens), 3)  # 0 output, 1 source, 2 padding, 3 what else there is
        for row, captions in zip(roles, arguments["cap_feats"], strict=True):
            start = sum(len(caption) + -len(caption) % 32 for caption in captions)
            for role, (height, width) in pictures:
                stop = start + height * width
                row[start:stop], row[stop : stop + -height * width % 32] = role, 2
                start = stop + -height * width % 32
        return roles.argsort(stable=True)

    return Layout(grid, tuple(sources), padding, order if omni else None)


def sigma(arguments: Arguments) -> torch.Tensor:
    return 1 - arguments["t"]


Z_IMAGE = Adapter(
    name="z-image",
    model="ZImageTransformer2DModel",
    attention=("layers.*.attention",),
    layout=layout,
    time=sigma,
    image_at="start",
    guidance="batched:cu",
    latents="x",
    pipelines=tuple(
        f"ZImage{kind}Pipeline" for kind in ("", "Img2Img", "Inpaint", "ControlNet", "ControlNetInpaint", "Omni")
    ),
)
