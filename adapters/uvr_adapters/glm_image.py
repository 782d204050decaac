"""GLM-Image: all that UVR knows about it.

Joint order: text, output, in one stream. The model takes latents (B, C, H, W) and cuts them into patches itself; the
time argument is t - 1 in 0..1000. With guidance_scale > 1 two passes run, the conditional first, unnamed.

Before the first step a forward for each source writes keys and values into `kv_caches`: no denoising step. The
conditional pass reads them, before the text; the cache knows their number alone: a row of so many patches.
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout, TextRoute

from .arguments import of_latents, text, with_cached


def layout(arguments: Arguments) -> Layout | None:
    plain, caches = of_latents(arguments), arguments.get("kv_caches")
    if caches is None or caches[0].mode in (None, "skip"):
        return plain
    if caches[0].mode == "write":
        return None
    return with_cached(arguments, plain.grid, count=caches[0].k_caches[0].shape[1])


def sigma(arguments: Arguments) -> torch.Tensor:
    return (arguments["timestep"] + 1) / 1000


PRIOR = "a draft that another model made of the prompt, added to the patches"
GLM_IMAGE = Adapter(
    name="glm-image",
    model="GlmImageTransformer2DModel",
    attention=("transformer_blocks.*.attn1",),
    layout=layout,
    time=sigma,
    text=text,
    guidance="two_pass",
    routes=(TextRoute("prior tokens", PRIOR, ("prior_token_id",)),),
    pipelines=("GlmImagePipeline",),
)
