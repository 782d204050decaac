"""Bria FIBO 2, pictures and edits: all that UVR knows about it.

Joint order: gist tokens, output, references. The gist is what a resampler makes of the prompt, as many tokens as its
length calls for, and counts as text. With different gist counts in one batch it comes last, padded and masked. The
model takes latents (B, C, H, W) and a list of those of references; time is sigma. With guidance_scale > 1 two passes
run, the conditional first, unnamed.
"""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout, TextRoute

from .arguments import first_last, grid_of, sigma


def gists(arguments: Arguments) -> torch.Tensor:
    of, mask, text = (arguments.get(name) for name in ("self", "encoder_attention_mask", "encoder_hidden_states"))
    lengths = torch.full((len(text),), text.shape[2]) if mask is None else mask.sum(1).cpu()
    low, high = of.config.min_num_gist_tokens, of.config.max_num_gist_tokens
    shortest, longest, step = of.config.gist_min_text_len, of.config.gist_max_text_len, of.config.gist_step
    share = ((lengths.double() - shortest) / (longest - shortest)).clamp(0, 1)
    return (((low + share * (high - low)) / step).ceil() * step).clamp(low, high).int()


def layout(arguments: Arguments) -> Layout:
    patch, pictures = arguments["self"].config.patch_size, arguments.get("context_latents") or []
    grid, *references = (grid_of(picture, patch) for picture in (arguments["hidden_states"], *pictures))
    plain, counts = Layout(grid, tuple(references)), gists(arguments)
    return plain if counts.min() == counts.max() else first_last(plain, plain.image, len(counts))


CROSS = "five blocks of the released model read the prompt beside the gist, each through a gate of one number"
BRIA_FIBO2 = Adapter(
    name="bria-fibo2",
    model="BriaFibo2Transformer2DModel",
    attention=("layers.*.attention",),
    layout=layout,
    time=sigma,
    text=lambda arguments: int(gists(arguments).max()),
    guidance="two_pass",
    routes=(TextRoute("gated cross-attention", CROSS, modules=("layers.*.cross_attention",)),),
    pipelines=("BriaFibo2Pipeline",),
)
