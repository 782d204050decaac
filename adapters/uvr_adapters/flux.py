"""FLUX.1 (dev, schnell, Fill, Control, ControlNet, with Redux) and FLUX.1 Kontext: all that UVR knows about them.

Joint order: text, output, reference. Double-stream blocks first, then single-stream blocks. `img_ids` is (I, 3):
column 0 tells output (0) from reference (1, Kontext), columns 1 and 2 are row and column of the patch. The time
argument is sigma = t / 1000. Guidance is distilled; with true_cfg_scale > 1 two passes run, the conditional first;
FluxPipeline names them, Kontext does not.
"""

from __future__ import annotations

from uvr_core.adapter import Adapter, TextRoute

from .arguments import of_ids, sigma, text

FLUX = Adapter(
    name="flux",
    model="FluxTransformer2DModel",
    attention=("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
    probes=("single_transformer_blocks.*.attn",),
    layout=of_ids,
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
