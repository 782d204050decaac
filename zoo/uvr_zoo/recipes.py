"""What each zoo pipeline is: its transformer, vocabulary and how it was trained. One Recipe per name."""

from __future__ import annotations

from typing import Any

import attrs

from .world import STYLES


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

RECIPES = {
    "flux": Recipe(
        name="flux",
        objects=_FIRST,
        styles=("glossy", "toy"),
        sampling={"num_inference_steps": 20, "guidance_scale": 1.0, "true_cfg_scale": 3.0},
        transformer={
            "patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 4, "attention_head_dim": 32,
            "num_attention_heads": 4, "joint_attention_dim": 128, "pooled_projection_dim": 64,
            "guidance_embeds": True, "axes_dims_rope": (8, 12, 12),
        },
    ),
}  # fmt: skip
