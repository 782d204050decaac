"""NucleusMoE-Image."""

from __future__ import annotations

from typing import Any

import torch

from .family import Drawing, Family, Release, Size, assembled, by_text, packed, padded, scheduler

WIDTH = 12
# The defaults of the class but for its experts, which read counts that meta tensors have not.
WITHOUT_EXPERTS = {"moe_enabled": False}
# The fourth of five blocks has experts, the last has none, as in the released model.
CONFIG = {
    "in_channels": 16, "out_channels": 4, "num_layers": 5, "attention_head_dim": 16, "num_attention_heads": 2,
    "num_key_value_heads": 1, "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6), "mlp_ratio": 8.0,
    "num_experts": 2, "moe_intermediate_dim": 16, "capacity_factors": 2.0,
}  # fmt: skip


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As NucleusMoEImagePipeline, without padding."""
    return {
        **packed(config, height, width, batch, 3584),
        "img_shapes": [(1, height, width)] * batch,
        "encoder_hidden_states_mask": torch.ones(batch, 5, dtype=torch.bool),
        "timestep": torch.full((batch,), sigma),
    }


def build(transformer: Any) -> Any:
    steps = scheduler(use_dynamic_shifting=True)
    pipe = assembled("NucleusMoEImagePipeline", transformer=transformer, scheduler=steps)
    pipe.encode_prompt = lambda prompt, **_: padded(prompt, WIDTH)
    return pipe


FAMILIES = (
    Family(
        adapter="nucleus-image", model="NucleusMoEImageTransformer2DModel", config=CONFIG, inputs=inputs,
        drawings=(Drawing("NucleusMoEImagePipeline", build, by_text, ("c", "u")),),
        releases=(
            Release("NucleusAI/NucleusMoE-Image (the defaults of the class, no experts)", WITHOUT_EXPERTS, taps=24),
        ),
    ),
)  # fmt: skip
