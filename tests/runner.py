"""A tiny FLUX pipeline of real classes with random weights, and a bank that fits it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from tiny import tiny_flux

import uvr_core

PROMPTS = ["a cat", "a knife on the left", "a dog"]
PROBE = "single_transformer_blocks.0.attn"


class Runner:
    """A pipeline with fixed prompts, seeds and size; `run()` returns images (B, 64, 64, 3) float32."""

    def __init__(self) -> None:
        self.pipe = tiny_flux()

    def run(self, prompts: list[str] | None = None, **options: Any) -> np.ndarray:
        prompts = PROMPTS if prompts is None else prompts
        options = {"height": 64, "width": 64, "num_inference_steps": 3, "output_type": "np", **options}
        if options.get("true_cfg_scale", 1) > 1:
            options.setdefault("negative_prompt", [""] * len(prompts))
        generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        return self.pipe(prompts, generator=generators, **options).images


def generation_of(reg: uvr_core.Regulator) -> AbstractContextManager[None]:
    """A generation of a regulated transformer; of a pipeline its calls are that."""
    return reg.generation() if reg._bare else nullcontext()


def make_bank(name: str = "x", threshold: float = 0.0, heads: int = 2, head_dim: int = 16) -> uvr_core.ConceptBank:
    """A random bank for tiny_flux."""
    generator = torch.Generator().manual_seed(7)
    width = heads * head_dim
    tensors = {
        "sigma": torch.tensor([1.0, 0.8, 0.5]),
        f"anchors/{PROBE}": torch.randn(5, width, generator=generator),
        f"direction/{PROBE}": torch.randn(3, width, generator=generator),
        f"offset/{PROBE}": torch.zeros(3),
    }
    fingerprint = uvr_core.Fingerprint("FluxTransformer2DModel", 4, heads, head_dim)
    calibration = uvr_core.Calibration("contrast", PROBE, (1.0, 0.0), threshold)
    return uvr_core.ConceptBank(name, fingerprint, tensors, calibration, {"seed": 7})
