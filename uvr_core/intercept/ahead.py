"""A pipeline's call before the one that was asked for: its first step alone, with the same source and another text.

The noise is always the same, so that what such a call shows follows from the source. One step of two, since some
schedulers make no schedule of a single one; diffusers' own way of interrupting ends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# What says how the source is laid out, and how the model is run. Nothing else of the call that was asked for is kept.
KEPT = (
    *("height", "width", "max_area", "_auto_resize", "max_sequence_length", "guidance_scale"),
    *("joint_attention_kwargs", "attention_kwargs"),
)
SEED = 0


def first_step(arguments: Mapping[str, Any], text: str, count: int) -> dict[str, Any]:
    """Keyword arguments of a call of one step.

    Args:
        arguments: of the call that was asked for, by name.
        text: in place of the prompt.
        count: sources in its `image`; each is drawn once.
    """
    guidance = {"true_cfg_scale": 1.0} if "true_cfg_scale" in arguments else {}
    return {
        **{name: arguments[name] for name in KEPT if arguments.get(name) is not None},
        **guidance,
        "image": arguments["image"],
        "prompt": [text] * count,
        "num_inference_steps": 2,
        "generator": [torch.Generator().manual_seed(SEED) for _ in range(count)],
        "output_type": "latent",
        "callback_on_step_end": _stop,
    }


def _stop(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    pipeline._interrupt = True  # every call sets it back as it begins
    return tensors


def devices() -> list[int]:
    """The devices whose random state a call may change, beside the CPU's."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
