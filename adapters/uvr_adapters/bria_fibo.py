"""Bria FIBO and FIBO Edit: all that UVR knows about them.

Wired as FLUX, ids included: text, output, references; but half of each text token is put in anew before every block,
from another layer of the text encoder. `img_ids` column 0 tells the output (0) from the references (1, 2 ..); padded
text is masked. The time argument is t in 0..1000. Guidance runs in one batch, [unconditional, conditional].
"""

from __future__ import annotations

from uvr_core.adapter import Adapter

from .arguments import of_ids, sigma_of_thousand, text

BRIA_FIBO = Adapter(
    name="bria-fibo",
    model="BriaFiboTransformer2DModel",
    attention=("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
    layout=of_ids,
    time=sigma_of_thousand,
    text=text,
    image_at="end",
    guidance="batched:uc",
    pipelines=("BriaFiboPipeline", "BriaFiboEditPipeline"),
)
