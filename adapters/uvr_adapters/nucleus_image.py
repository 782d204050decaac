"""NucleusMoE-Image: all that UVR knows about it.

Keys: output, text; queries: the output alone, the text is never updated. `img_shapes` holds one (frames, rows, columns)
per sample, unnested. Padded text is masked. The time argument is sigma = t / 1000. With guidance_scale > 1 two passes
run, the conditional first, unnamed. Experts take the patches of an image that suit them best: in the blocks that have
them an edit of one patch may change which others an expert takes.
"""

from __future__ import annotations

from uvr_core.adapter import Adapter

from .arguments import sigma, text
from .qwen_image import layout

NUCLEUS_IMAGE = Adapter(
    name="nucleus-image",
    model="NucleusMoEImageTransformer2DModel",
    attention=("transformer_blocks.*.attn",),
    layout=layout,
    time=sigma,
    text=text,
    image_at="start",
    text_output=False,
    guidance="two_pass",
    pipelines=("NucleusMoEImagePipeline",),
)
