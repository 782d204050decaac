"""FLUX.1: text to image, image to image, Fill, Control and Kontext."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from .family import (
    Drawing,
    Family,
    Release,
    Size,
    assembled,
    count,
    embedding,
    image_ids,
    padded,
    picture,
    scheduler,
    vae,
)

WIDTH, POOLED = 12, 8
CONFIG = {
    "patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": WIDTH, "pooled_projection_dim": POOLED, "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
FILL = {"in_channels": 16 + 16 + 4 * 4, "out_channels": 16}  # latents, masked source, mask of 2 x 2 pixels each
CONTROL = {"in_channels": 32, "out_channels": 16}
# black-forest-labs/FLUX.1-schnell, transformer/config.json; FLUX.1-dev's stands in tests/published.py
SCHNELL = {"guidance_embeds": False}
# black-forest-labs/FLUX.1-Fill-dev and FLUX.1-Canny-dev, transformer/config.json
FILL_DEV = {"guidance_embeds": True, "in_channels": 384, "out_channels": 64}
CANNY_DEV = {"guidance_embeds": True, "in_channels": 128, "out_channels": 64}


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As FluxPipeline and FluxKontextPipeline: ids (picture, row, column), 1 for the source."""
    sizes = ((height, width), *references)
    return {
        "hidden_states": torch.randn(batch, count(*sizes), config.get("in_channels", 64)),
        "encoder_hidden_states": torch.randn(batch, 5, config.get("joint_attention_dim", 4096)),
        "pooled_projections": torch.randn(batch, config.get("pooled_projection_dim", 768)),
        "timestep": torch.full((batch,), sigma),
        "guidance": torch.full((batch,), 3.5) if config["guidance_embeds"] else None,
        "img_ids": image_ids(*sizes),
        "txt_ids": torch.zeros(5, 3),
    }


def build(pipeline: str, transformer: Any) -> Any:
    return assembled(pipeline, transformer=transformer, vae=vae(), scheduler=scheduler(use_dynamic_shifting=True))


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """8 x 12 pixels; the source of Kontext, and of what is drawn over or into, is one for all prompts."""
    pooled = torch.stack([embedding(prompt, POOLED)[0] for prompt in prompts])
    options = {"prompt_embeds": padded(prompts, WIDTH)[0], "pooled_prompt_embeds": pooled, "height": 8, "width": 12}
    if negative is not None:
        every = padded([*prompts, negative], WIDTH)[0]  # both texts must have one length
        options |= {"prompt_embeds": every[:-1], "negative_prompt_embeds": every[-1:].expand(len(prompts), -1, -1)}
        options["negative_pooled_prompt_embeds"] = embedding(negative, POOLED)[:1].expand(len(prompts), -1)
        options["true_cfg_scale"] = 3.0
    name = type(pipe).__name__
    if "Control" in name:
        options["control_image"] = picture(0, 8, 12)
    if "Img2Img" in name or "Inpaint" in name:
        options |= {"image": picture(1, 8, 12), "strength": 1.0}
    if "Inpaint" in name or "Fill" in name:
        options |= {"image": picture(1, 8, 12), "mask_image": picture(2, 8, 12).convert("L")}
    if "Kontext" in name:
        options |= {"image": picture(1, 8, 8), "max_area": 8 * 12, "_auto_resize": False}
    return options


def drawing(name: str, guides: bool, **config: Any) -> Drawing:
    references = (1,) if "Kontext" in name else (0,)
    parts = ("c", "u") if guides else ()
    since = "0.39" if name in ("Img2Img", "Inpaint") else ""  # until then negative embeddings did not turn guidance on
    return Drawing(
        f"Flux{name}Pipeline",
        partial(build, f"Flux{name}Pipeline"),
        call,
        parts,
        config,
        references=references,
        since=since,
    )


FAMILIES = (
    Family(
        adapter="flux", model="FluxTransformer2DModel", config=CONFIG, inputs=inputs, references=True,
        drawings=(
            drawing("", True), drawing("Img2Img", True), drawing("Inpaint", True), drawing("Kontext", True),
            drawing("Fill", False, **FILL), drawing("Control", False, **CONTROL),
            drawing("ControlImg2Img", False, **CONTROL), drawing("ControlInpaint", False, **CONTROL),
        ),
        releases=(
            Release("black-forest-labs/FLUX.1-schnell", SCHNELL, taps=57),
            Release("black-forest-labs/FLUX.1-Fill-dev", FILL_DEV, taps=57),
            Release("black-forest-labs/FLUX.1-Canny-dev", CANNY_DEV, taps=57),
        ),
    ),
)  # fmt: skip
