"""JoyImage-Edit and Edit-Plus."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from .family import Drawing, Family, Release, Size, assembled, count, padded, picture, scheduler, wan_vae

WIDTH = 12
CONFIG = {
    "in_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "text_dim": WIDTH, "num_layers": 2,
    "rope_dim_list": [4, 6, 6],
}  # fmt: skip
BUCKETS = [(32, 48), (32, 32)]  # pixels, 16 of them a patch; the pipelines' own begin at 512


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As JoyImageEditPipeline: the output is the last item, and sources are as large."""
    items = 1 + len(references)
    return {
        "hidden_states": torch.randn(batch, items, config.get("in_channels", 16), 1, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 1000 * sigma),
        "encoder_hidden_states": torch.randn(batch, 5, config.get("text_dim", 4096)),
    }


def plus_inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As JoyImageEditPlusPipeline: patches of all pictures, the output first."""
    sizes = ((height, width), *references)
    return {
        "hidden_states": torch.randn(batch, count(*sizes), config.get("in_channels", 16), 1, 2, 2),
        "timestep": torch.full((batch,), 1000 * sigma),
        "encoder_hidden_states": torch.randn(batch, 5, config.get("text_dim", 4096)),
        "encoder_hidden_states_mask": torch.ones(batch, 5, dtype=torch.bool),
        "shape_list": [[(1, *size) for size in sizes]] * batch,
    }


def patches(output: torch.Tensor, grid: Size) -> torch.Tensor:
    """(B, items, C, 1, h, w), the output last -> (B, N, C)."""
    (height, width), picture = grid, output[:, -1, :, 0]
    cut = picture.unflatten(3, (width, -1)).unflatten(2, (height, -1))  # (B, C, H, rows, W, columns)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def plus_patches(output: torch.Tensor, grid: Size) -> torch.Tensor:
    """(B, all patches, C, 1, 2, 2) -> (B, N, C)."""
    return output[:, : count(grid)].flatten(2)


def build(pipeline: str, transformer: Any) -> Any:
    from diffusers.pipelines.joyimage import image_processor

    image_processor.BUCKETS[32] = BUCKETS
    pipe = assembled(pipeline, transformer=transformer, vae=wan_vae(4), scheduler=scheduler())
    processor = image_processor.JoyImageEditImageProcessor(vae_scale_factor=8, basesize=32)
    setattr(pipe, "image_processor" if "Plus" in pipeline else "vae_image_processor", processor)
    pipe.encode_prompt = pipe.encode_prompt_multiple_images = lambda prompt, **_: padded(prompt, WIDTH)
    return pipe


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """32 x 48 pixels; each prompt has the same sources."""
    options: dict[str, Any] = {"prompt": list(prompts), "height": 32, "width": 48, "guidance_scale": 1.0}
    if negative is not None:
        options |= {"negative_prompt": [negative] * len(prompts), "guidance_scale": 3.0}
    if "Plus" in type(pipe).__name__:
        sources = [picture(0, 32, 48), picture(1, 32, 32)][:references]
        return options | {"images": [sources] * len(prompts) if sources else None}
    torch.manual_seed(0)  # the pipeline draws the source's latent without a generator
    return options | {"image": [picture(0, 32, 48)] * len(prompts) if references else None}


def family(kind: str, inputs: Any, patches: Any, parts: tuple[str, ...], references: tuple[int, ...]) -> Family:
    pipeline, model = f"JoyImage{kind}Pipeline", f"JoyImage{kind}Transformer3DModel"
    release = "jdopensource/JoyAI-Image-Edit" + ("-Plus" if kind == "EditPlus" else "") + " (the defaults of the class)"
    return Family(
        adapter="joyimage-edit" + ("-plus" if kind == "EditPlus" else ""), model=model,
        since="0.40" if kind == "EditPlus" else "0.39", config=CONFIG, inputs=inputs,
        references=kind == "EditPlus", patches=patches,
        drawings=(Drawing(pipeline, partial(build, pipeline), call, parts, references=references),),
        releases=(Release(release, {}, taps=20, references=1 if kind == "EditPlus" else 0),),
    )  # fmt: skip


FAMILIES = (
    family("Edit", inputs, patches, ("c", "u"), (0, 1)),
    family("EditPlus", plus_inputs, plus_patches, ("uc",), (0, 1, 2)),
)
