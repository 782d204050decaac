"""Z-Image (Turbo, base, img2img, inpaint, ControlNet) and Z-Image Omni: all that UVR knows about them.

Joint order: output, its padding to a multiple of 32, caption. The model takes a list of latents (C, F, H, W), one per
sample. The time argument is turned round, 1 - t / 1000. Guidance runs in one batch, [conditional, unconditional], until
cfg_truncation ends it. Omni takes lists of latents, sources before the output, and captions between them that come
first in the sequence: brought into the order output, sources, padding, captions and what SigLIP sees of the sources.
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout

from .arguments import grid_of, of_all_samples


def layout(arguments: Arguments) -> Layout:
    patch, samples = arguments.get("patch_size", 2), arguments["x"]
    omni = isinstance(samples[0], list)
    each = (tuple(grid_of(latent, patch) for latent in (sample if omni else [sample])) for sample in samples)
    *sources, grid = of_all_samples("z-image", each)
    pictures = [*((1, height * width) for height, width in sources), (0, grid[0] * grid[1])]
    images = [role for kind, count in pictures for role in [kind] * count + [2] * (-count % 32)]

    def order(tokens: int) -> torch.Tensor:  # roles: 0 output, 1 source, 2 padding, 3 what else there is
        starts = [sum(len(caption) + -len(caption) % 32 for caption in sample) for sample in arguments["cap_feats"]]
        roles = [[3] * start + images + [3] * (tokens - start - len(images)) for start in starts]
        return torch.tensor(roles).argsort(stable=True)

    return Layout(grid, tuple(sources), images.count(2), order if omni else None)


KINDS = ("", "Img2Img", "Inpaint", "ControlNet", "ControlNetInpaint", "Omni")
Z_IMAGE = Adapter(
    name="z-image",
    model="ZImageTransformer2DModel",
    attention=("layers.*.attention",),
    layout=layout,
    time=lambda arguments: 1 - arguments["t"],
    image_at="start",
    guidance="batched:cu",
    latents="x",
    pipelines=tuple(f"ZImage{kind}Pipeline" for kind in KINDS),
)
