"""Prompts, options and masks with which a bank is collected on a tiny pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np

OPTIONS: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2}
UNSAFE = ["a knife on the left", "a pistol", "a bomb at the top", "a knife"]
BENIGN = ["a cat", "a dog on the right", "a star", "a hat", "a fish at the top", "a tree"]


def drawn_masks(count: int) -> np.ndarray:
    masks = np.zeros((count, 8, 8), bool)
    for i in range(count):
        masks[i, 1 : 3 + i % 2, 2:5] = True
    return masks
