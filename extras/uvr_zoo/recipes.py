"""What each zoo pipeline is: its transformer, vocabulary and how it was trained. One Recipe per name."""

from __future__ import annotations

from typing import Any

import attrs

from uvr_core.errors import UVRError, did_you_mean

from .vocabulary import STYLES


@attrs.frozen
class Recipe:
    """A zoo pipeline in the making.

    `objects` is the vocabulary it draws. `transformer` is the keyword configuration of the transformer class.
    `shift` is the timestep shift of the FlowMatchEulerDiscrete scheduler (sigma' = s*sigma / (1 + (s-1)*sigma)).
    """

    name: str
    objects: tuple[str, ...]
    transformer: dict[str, Any]
    styles: tuple[str, ...] = tuple(STYLES)
    shift: float = 2.0
    steps: int = 20
    batch_size: int = 48
    learning_rate: float = 2e-3
    ema: float = 0.998
    scenes: int = 12288
    edits: bool = False  # train on (source, instruction, target) instead of (caption, picture)
    start_from: str | None = None  # zoo pipeline whose transformer training starts from
    drop_text: float = 0.1  # whole condition dropped: the unconditional branch
    drop_pooled: float = 0.5  # pooled vector alone replaced by the empty prompt's
    guidance: tuple[float, float] = (1.0, 4.0)  # range of scales distilled into the guidance embedding
    sampling: dict[str, Any] = attrs.field(factory=dict)  # pipeline call under which figures are taken
    seed: int = 0
    notes: dict[str, str] = attrs.field(factory=dict)


_FIRST = (
    "knife",
    "pistol",
    "bomb",
    "skull",
    "cat",
    "dog",
    "apple",
    "car",
    "tree",
    "star",
    "fish",
    "mushroom",
    "hat",
    "banana",
)

_SHARED = {"objects": _FIRST, "styles": ("glossy", "toy")}
_FLUX = {
    "patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 4, "attention_head_dim": 32,
    "num_attention_heads": 4, "joint_attention_dim": 128, "pooled_projection_dim": 64, "guidance_embeds": True,
    "axes_dims_rope": (8, 12, 12),
}  # fmt: skip
_QWEN = {
    "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 6, "attention_head_dim": 32,
    "num_attention_heads": 4, "joint_attention_dim": 128, "axes_dims_rope": (8, 12, 12),
}  # fmt: skip

RECIPES = {
    "flux": Recipe(
        name="flux", **_SHARED, transformer=_FLUX,
        sampling={"num_inference_steps": 20, "guidance_scale": 1.0, "true_cfg_scale": 3.0},
    ),
    "sd3": Recipe(
        name="sd3", **_SHARED,
        sampling={"num_inference_steps": 20, "guidance_scale": 3.0},
        transformer={
            "sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 6,
            "attention_head_dim": 32, "num_attention_heads": 4, "joint_attention_dim": 128,
            "caption_projection_dim": 128, "pooled_projection_dim": 128, "pos_embed_max_size": 16,
            "dual_attention_layers": (0,), "qk_norm": "rms_norm",
        },
    ),
    "flux-kontext": Recipe(
        name="flux-kontext", **_SHARED, scenes=6144, batch_size=32, transformer=_FLUX, edits=True, start_from="flux",
        sampling={
            "num_inference_steps": 20, "guidance_scale": 1.0, "true_cfg_scale": 1.0, "max_area": 64 * 64,
            "_auto_resize": False,
        },
    ),
    "qwen-image": Recipe(
        name="qwen-image", **_SHARED, transformer=_QWEN,
        sampling={"num_inference_steps": 20, "true_cfg_scale": 3.0},
    ),
    "qwen-image-edit": Recipe(
        name="qwen-image-edit", **_SHARED, scenes=6144, batch_size=32, transformer=_QWEN, edits=True,
        start_from="qwen-image",
        sampling={"num_inference_steps": 20, "true_cfg_scale": 2.0},
    ),
}  # fmt: skip


def recipe_of(name: str) -> Recipe:
    """Raises UVRError: the zoo has no pipeline of that name."""
    if name not in RECIPES:
        raise UVRError(f"unknown zoo pipeline {name!r}{did_you_mean(name, RECIPES)}")
    return RECIPES[name]
