"""FLUX.2 and FLUX.2 [klein]: all that UVR knows about them.

Joint order: text, output, references; blocks as FLUX.1's. `img_ids` is (I, 4) or (B, I, 4): column 0 tells the output
(0) from references (10, 20 ..), columns 1 and 2 are row and column of the patch. The time argument is sigma = t / 1000.
FLUX.2's guidance is distilled; klein runs two passes, named "cond" and "uncond". Klein-KV puts references before the
output. At first they attend to themselves, in a call of their own; later their keys come out of a cache, which knows
their number alone: a row of so many patches.
"""

from __future__ import annotations

from uvr_core.adapter import Adapter, Arguments, Layout

from .arguments import of_ids, sigma, text, with_cached


def layout(arguments: Arguments) -> Layout:
    count = arguments.get("num_ref_tokens") or getattr(arguments.get("kv_cache"), "num_ref_tokens", 0)
    if not count:
        return of_ids(arguments)
    ids = arguments["img_ids"].flatten(0, -2)[-arguments["img_ids"].shape[-2] :]
    drawn = of_ids({"img_ids": ids[ids[:, 0] == 0]})
    return with_cached(arguments, drawn.grid, count, start=text(arguments))


FLUX2 = Adapter(
    name="flux2",
    model="Flux2Transformer2DModel",
    attention=("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
    layout=layout,
    time=sigma,
    text=text,
    guidance="two_pass",
    pipelines=("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinKVPipeline", "Flux2KleinInpaintPipeline"),
)
