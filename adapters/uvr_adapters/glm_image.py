"""GLM-Image: all that UVR knows about it.

Joint order: text, output, in one stream. The model takes latents (B, C, H, W) and cuts them into patches itself; the
time argument is t - 1 in 0..1000. With guidance_scale > 1 two passes run, the conditional first, unnamed.

Before the first step a forward for each source writes keys and values into `kv_caches`: no denoising step. The
conditional pass reads them, before the text; the cache knows their number alone: a row of so many patches.
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout, TextRoute


def layout(arguments: Arguments) -> Layout | None:
    patch, states, caches = arguments["self"].config.patch_size, arguments["hidden_states"], arguments.get("kv_caches")
    grid = (states.shape[-2] // patch, states.shape[-1] // patch)
    if caches is None or caches[0].mode in (None, "skip"):
        return Layout(grid)
    if caches[0].mode == "write":
        return None
    count, both = caches[0].k_caches[0].shape[1], arguments["encoder_hidden_states"].shape[1] + grid[0] * grid[1]

    def order(tokens: int) -> torch.Tensor:
        return torch.arange(tokens).roll(-count if tokens > both else 0).expand(len(states), -1)

    return Layout(grid, ((1, count),), order=order)


def sigma(arguments: Arguments) -> torch.Tensor:
    return (arguments["timestep"] + 1) / 1000


def text(arguments: Arguments) -> int:
    return arguments["encoder_hidden_states"].shape[1]


GLM_IMAGE = Adapter(
    name="glm-image",
    model="GlmImageTransformer2DModel",
    attention=("transformer_blocks.*.attn1",),
    layout=layout,
    time=sigma,
    text=text,
    guidance="two_pass",
    routes=(
        TextRoute(
            "prior tokens", "a draft that another model made of the prompt, added to the patches", ("prior_token_id",)
        ),
    ),
    pipelines=("GlmImagePipeline",),
)
