"""Flows of tiny pipelines, and made-up curves and scores."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from PIL import Image
from tiny import example

from uvr_analysis import measure_flows
from uvr_analysis.flows import LOCATED, OUTPUT, Flows

PROMPTS = ["a cat", "a knife on the left and a dog on the right , night background"]
N = 64  # output patches
EDITS = ("flux-kontext", "qwen-image-edit")
SOURCES = [Image.new("RGB", (64, 64), colour) for colour in ("teal", "orange")]
MASKS = np.zeros((2, 8, 8), bool)
MASKS[0, 2:5, 1:4] = MASKS[1, :, 6] = True
STEPS = np.arange(20)
FALL = np.where(STEPS < 6, 0.6, 0.3)


@functools.cache
def pipeline(name: str) -> Any:
    """A zoo pipeline, its transformer tiny and random."""
    return example(name).pipeline


def options(name: str, steps: int = 2, guided: bool = True) -> dict[str, Any]:
    """Keyword arguments of a pipeline's call, with guidance's second branch or without."""
    scale = 3.0 if guided else 1.0
    call: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": steps}
    call |= {"guidance_scale": scale} if name == "sd3" else {"true_cfg_scale": scale}
    if guided and name != "sd3":
        call["negative_prompt"] = "a dog"
    if name == "flux-kontext":
        call |= {"max_area": 64 * 64, "_auto_resize": False}
    return call


def sources(name: str) -> list[Image.Image] | None:
    return SOURCES if name in EDITS else None


def measured(name: str, **more: Any) -> Flows:
    more = {"generate": options(name), **more}
    return measure_flows(pipeline(name), PROMPTS, sources(name), **more)


def curves(line: Any, images: int = 16, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    """(images, steps): a curve with image and step noise."""
    rng = np.random.default_rng(seed)
    line = np.asarray(line, float)
    return line + noise * rng.standard_normal((images, 1)) + noise * rng.standard_normal((images, len(line)))


def scored(scores: np.ndarray, masks: np.ndarray) -> Flows:
    images, steps = scores.shape[:2]
    share = np.full((images, steps, 1, 5, 5), np.nan, np.float32)
    share[..., OUTPUT, :LOCATED] = [0.5, 0.5, 0.0]
    counts = np.tile([8, scores.shape[2], 0, 0, 0], (images, 1))
    levels = np.linspace(1, 0.1, steps).tolist()
    pictures = [Image.new("RGB", (64, 48), "grey")] * images
    return Flows(share, counts, ("a",), levels, (3, 4), pictures, masks, {"a": scores.astype(np.float32)})
