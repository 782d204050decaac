"""FLUX.2, FLUX.2 [klein] and its variant with cached references."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import diffusers
import torch

from .family import Drawing, Family, Release, Size, assembled, count, image_ids, padded, picture, scheduler

WIDTH = 12
CONFIG = {
    "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": WIDTH, "timestep_guidance_channels": 16, "axes_dims_rope": (4, 4, 4, 4),
}  # fmt: skip
# black-forest-labs/FLUX.2-dev, transformer/config.json: the class's defaults
DEV: dict[str, Any] = {}
# black-forest-labs/FLUX.2-klein-4B and -9B, transformer/config.json, as far as known
KLEIN_4B = {
    "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
    "guidance_embeds": False,
}  # fmt: skip
KLEIN_9B = {
    "num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288,
    "guidance_embeds": False,
}  # fmt: skip


def vae() -> Any:
    """One patch of its latents is 32 x 32 pixels: the pipelines want sources of at least 64 x 64."""
    torch.manual_seed(0)
    return diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 5, up_block_types=("UpDecoderBlock2D",) * 5,
        block_out_channels=(4,) * 5, layers_per_block=1, latent_channels=4, norm_num_groups=2,
        mid_block_add_attention=False,
    ).eval()  # fmt: skip


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As Flux2Pipeline: ids (t, row, column, l), where t is 0 for the output and 10, 20 .. for references."""
    sizes = ((height, width), *references)
    return {
        "hidden_states": torch.randn(batch, count(*sizes), config.get("in_channels", 128)),
        "encoder_hidden_states": torch.randn(batch, 5, config.get("joint_attention_dim", 15360)),
        "timestep": torch.full((batch,), sigma),
        "guidance": torch.full((batch,), 4.0),
        "img_ids": image_ids(*sizes, axes=4, number=lambda index: 10 * index).expand(batch, -1, -1),
        "txt_ids": torch.zeros(batch, 5, 4),
    }


def build(pipeline: str, transformer: Any) -> Any:
    return assembled(pipeline, transformer=transformer, vae=vae(), scheduler=scheduler(use_dynamic_shifting=True))


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    options: dict[str, Any] = {"prompt_embeds": padded(prompts, WIDTH)[0], "height": 64, "width": 96}
    if "KV" not in type(pipe).__name__ and "Klein" in type(pipe).__name__:
        options["guidance_scale"] = 1.0 if negative is None else 3.0
        if negative is not None:
            options["negative_prompt_embeds"] = padded([negative] * len(prompts), WIDTH)[0]
    if "Inpaint" in type(pipe).__name__:
        options |= {"image": picture(0, 64, 96), "mask_image": picture(1, 64, 96).convert("L"), "strength": 1.0}
    if references:
        options["image"] = [picture(number, 96, 64) for number in range(references)]
    return options


FAMILIES = (
    Family(
        adapter="flux2", model="Flux2Transformer2DModel", config=CONFIG, inputs=inputs, references=True,
        drawings=(
            Drawing("Flux2KleinPipeline", partial(build, "Flux2KleinPipeline"), call, ("c", "u"), references=(0, 2)),
            Drawing("Flux2KleinInpaintPipeline", partial(build, "Flux2KleinInpaintPipeline"), call, ("c", "u")),
            Drawing("Flux2KleinKVPipeline", partial(build, "Flux2KleinKVPipeline"), call, (), references=(0, 1, 2)),
            Drawing("Flux2Pipeline", partial(build, "Flux2Pipeline"), call, (), references=(0, 2)),
        ),
        releases=(
            Release("black-forest-labs/FLUX.2-dev", DEV, taps=56, references=1),
            Release("black-forest-labs/FLUX.2-klein-4B (as far as known)", KLEIN_4B, taps=25, references=1),
            Release("black-forest-labs/FLUX.2-klein-9B (as far as known)", KLEIN_9B, taps=32),
        ),
    ),
)  # fmt: skip
