"""LongCat-Image and LongCat-Image-Edit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from .family import Drawing, Family, Release, Size, assembled, count, image_ids, padded, picture, scheduler, vae

WIDTH = 12
CONFIG = {
    "in_channels": 64, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
# meituan-longcat/LongCat-Image and -Edit, transformer/config.json: the class's defaults
LONGCAT: dict[str, Any] = {}


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As LongCatImagePipeline and LongCatImageEditPipeline: 1 for the output and 2 for the source, counted on."""
    sizes = ((height, width), *references)
    return {
        "hidden_states": torch.randn(batch, count(*sizes), config.get("in_channels", 64)),
        "encoder_hidden_states": torch.randn(batch, 5, config.get("joint_attention_dim", 3584)),
        "timestep": torch.full((batch,), sigma),
        "img_ids": image_ids(*sizes, number=lambda index: index + 1) + torch.tensor([0.0, 5.0, 5.0]),
        "txt_ids": torch.arange(5.0)[:, None].expand(-1, 3),
    }


class TextProcessor:
    """What the edit pipeline asks of a Qwen2VLProcessor before it encodes a prompt."""

    image_processor = None


def build(pipeline: str, transformer: Any) -> Any:
    """The edit pipeline draws about a million pixels: so that they are 4 x 4 patches, its VAE is steep."""
    edits = pipeline == "LongCatImageEditPipeline"
    parts = {"text_processor": TextProcessor()} if edits else {}
    parts |= {"transformer": transformer, "vae": vae(8 if edits else 2, channels=16)}
    pipe = assembled(pipeline, scheduler=scheduler(use_dynamic_shifting=True), **parts)
    pipe._encode_prompt = lambda prompt, image=None: padded(prompt, WIDTH)[0]
    return pipe


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    options = {"prompt": list(prompts), "guidance_scale": 1.0}
    if type(pipe).__name__ == "LongCatImagePipeline":
        options["enable_prompt_rewrite"] = False
    if negative is not None:
        options |= {"negative_prompt": [negative] * len(prompts), "guidance_scale": 3.0}
    if references:
        return options | {"image": picture(0, 64, 64)}
    return options | {"height": 8, "width": 12}


FAMILIES = (
    Family(
        adapter="longcat-image", model="LongCatImageTransformer2DModel", config=CONFIG, inputs=inputs, references=True,
        drawings=(
            Drawing("LongCatImagePipeline", partial(build, "LongCatImagePipeline"), call, ("c", "u")),
            Drawing(
                "LongCatImageEditPipeline", partial(build, "LongCatImageEditPipeline"), call, ("c", "u"), grid=(4, 4),
                references=(1,), batch=1,
            ),
        ),
        releases=(
            Release("meituan-longcat/LongCat-Image-Edit (the defaults of the class)", LONGCAT, taps=57, references=1),
        ),
    ),
)  # fmt: skip
