"""HunyuanImage 2.1 and its refiner: all that UVR knows about them.

Joint order: output, text; double-stream blocks first, then single-stream blocks. Text is both encoders' tokens, valid
ones first, padding masked. The model takes latents (B, C, H, W), the refiner (B, C, 1, H, W) with its source on the
channels. The time argument is t in 0..1000. A guider runs the passes, the conditional first.
"""

from __future__ import annotations

from uvr_core.adapter import Adapter, Arguments, Layout

from .arguments import sigma_of_thousand


def layout(arguments: Arguments) -> Layout:
    *_, rows, columns = arguments["self"].config.patch_size
    height, width = arguments["hidden_states"].shape[-2:]
    return Layout((height // rows, width // columns))


HUNYUAN_IMAGE = Adapter(
    name="hunyuan-image",
    model="HunyuanImageTransformer2DModel",
    attention=("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
    layout=layout,
    time=sigma_of_thousand,
    image_at="start",
    guidance="two_pass",
    pipelines=("HunyuanImagePipeline", "HunyuanImageRefinerPipeline"),
)
