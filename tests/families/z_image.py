"""Z-Image: text to image, with guidance that ends early, image to image, inpainting."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from .family import Drawing, Family, Release, assembled, embedding, embeddings, picture, scheduler, vae

WIDTH, SIGLIP = 12, 8
CONFIG = {
    "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
    "cap_feat_dim": WIDTH, "axes_dims": [4, 6, 6], "axes_lens": [256, 64, 64],
}  # fmt: skip
# Tongyi-MAI/Z-Image-Turbo and Z-Image, transformer/config.json: the class's defaults, as far as known
TURBO: dict[str, Any] = {}


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, text: tuple[int, ...] = ()
) -> dict[str, Any]:
    """As ZImagePipeline: a latent and a caption per sample; time 1 - t / 1000."""
    channels, features = config.get("in_channels", 16), config.get("cap_feat_dim", 2560)
    return {
        "x": [torch.randn(channels, 1, 2 * height, 2 * width) for _ in range(batch)],
        "t": torch.full((batch,), 1 - sigma),
        "cap_feats": [torch.randn(tokens, features) for tokens in text or [5] * batch],
    }


def build(pipeline: str, transformer: Any) -> Any:
    return assembled(pipeline, transformer=transformer, vae=vae(), scheduler=scheduler(shift=3.0))


def call(truncation: float, pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """8 x 12 pixels."""
    options = {"prompt_embeds": embeddings(prompts, WIDTH), "height": 8, "width": 12, "guidance_scale": 0.0}
    if negative is not None:
        options["negative_prompt_embeds"] = embeddings([negative] * len(prompts), WIDTH)
        options |= {"guidance_scale": 3.0, "cfg_truncation": truncation}
    if type(pipe).__name__ != "ZImagePipeline":
        options |= {"image": picture(0, 8, 12), "strength": 1.0}
    if "Inpaint" in type(pipe).__name__:
        options["mask_image"] = picture(1, 8, 12).convert("L")
    return options


def drawing(name: str, truncation: float = 1.0) -> Drawing:
    """Guidance ends where the time, which runs from 0 to 1, passes the truncation."""
    ends = {"truncated": ("c",), "note": "truncated"} if truncation < 1 else {}
    pipeline = f"ZImage{name}Pipeline"
    return Drawing(pipeline, partial(build, pipeline), partial(call, truncation), ("cu",), **ends)


def build_omni(transformer: Any) -> Any:
    """SigLIP is replaced where its features leave it; the pipeline encodes sources in bfloat16."""
    parts = {"transformer": transformer, "vae": vae(5).to(torch.bfloat16), "scheduler": scheduler(shift=3.0)}
    pipe = assembled("ZImageOmniPipeline", **parts)
    pipe.prepare_siglip_embeds = lambda images, batch_size, **_: [[torch.ones(2, 3, SIGLIP)] * len(images)] * batch_size
    return pipe


def call_omni(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """64 x 96 pixels, 32 x 32 to a patch. A caption is cut where the sources stand in it."""

    def captions(prompt: str) -> list[torch.Tensor]:
        return [embedding(f"{prompt} {'on ' * 30 * number}", WIDTH) for number in range(references + 1)]

    options = {"prompt_embeds": [captions(prompt) for prompt in prompts], "height": 64, "width": 96}
    options |= {"guidance_scale": 0.0, "image": [picture(number, 96, 64) for number in range(references)] or None}
    if negative is not None:
        options |= {"negative_prompt_embeds": [captions(negative) for _ in prompts], "guidance_scale": 3.0}
    return options


FAMILIES = (
    Family(
        adapter="z-image", model="ZImageTransformer2DModel", config=CONFIG, inputs=inputs, ragged=True,
        drawings=(
            drawing(""), drawing("", 0.1), drawing("Img2Img"), drawing("Inpaint"),
            Drawing(
                "ZImageOmniPipeline", build_omni, call_omni, ("cu",), {"siglip_feat_dim": SIGLIP}, references=(0, 2),
                since="0.39",
            ),
        ),
        releases=(Release("Tongyi-MAI/Z-Image-Turbo", TURBO, taps=30, text=32),),
    ),
)  # fmt: skip
