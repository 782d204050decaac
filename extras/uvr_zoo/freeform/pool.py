"""Encoded training scenes: a pool per canvas that takes in fresh scenes at every step; encoding is no bottleneck then.

A scene stays as long as its pool is full of older ones, and gets a new caption whenever it is used.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import torch

from ..architectures import pack
from ..vae import to_tensor
from .captions import caption
from .render import object_patches, render
from .scenes import Scene, sample

PATCH = 8  # pixels of a token's side
_KINDS = 64  # room for canvases in a seed


@attrs.frozen
class Mix:
    """What training scenes are drawn from.

    Attributes:
        objects, styles: the vocabulary.
        busy: share of busy backgrounds.
    """

    objects: tuple[str, ...]
    styles: tuple[str, ...]
    busy: float = 0.12


class Pool:
    """Up to `size` encoded scenes of one canvas, the oldest replaced first.

    Attributes:
        taken: how many scenes it has taken in so far; the next one's seed follows from it.
    """

    def __init__(self, mix: Mix, canvas: tuple[int, int], size: int):
        self.mix, self.canvas, self.size, self.taken = mix, canvas, size, 0
        self.grid = (canvas[0] // PATCH, canvas[1] // PATCH)
        tokens = self.grid[0] * self.grid[1]
        self.x = torch.zeros(size, tokens, 16, dtype=torch.float16)
        self.weight = torch.zeros(size, tokens, dtype=torch.float16)

    def __len__(self) -> int:
        return min(self.taken, self.size)

    def scene(self, slot: int) -> Scene:
        """The scene that a slot holds."""
        newest = self.taken - 1
        return self.drawn(newest - (newest - slot) % self.size)

    def drawn(self, number: int) -> Scene:
        kind = (self.canvas[0] // PATCH * 7 + self.canvas[1] // PATCH) % _KINDS
        seed = number * _KINDS + kind
        mix = self.mix
        return sample(seed, objects=mix.objects, styles=mix.styles, canvas=self.canvas, busy=mix.busy)

    @torch.no_grad()
    def take(self, count: int, vae: Any) -> None:
        """Draw and encode `count` more scenes."""
        drawn = [self.drawn(self.taken + i) for i in range(count)]
        pictures, masks = zip(*(render(scene) for scene in drawn), strict=True)
        pixels = to_tensor(np.stack(pictures)).to(vae.device)
        config = vae.config
        latents = (vae.encode(pixels).latent_dist.mean - config.shift_factor) * config.scaling_factor
        slots = [(self.taken + i) % self.size for i in range(count)]
        self.x[slots] = pack(latents).half().cpu()
        self.weight[slots] = torch.from_numpy(np.stack([self._weights(m) for m in masks])).half()
        self.taken += count

    def _weights(self, masks: dict[int, np.ndarray]) -> np.ndarray:
        """Patch weights: 1, and more on objects, the more the smaller they are, so that none is lost in the mean."""
        patches = object_patches(masks, self.grid).reshape(len(masks), -1)
        area = patches.sum(1, keepdims=True).clip(1)
        return 1 + (patches * np.clip(14 / area, 0.5, 3)).max(0)

    def state(self) -> dict[str, Any]:
        return {"x": self.x, "weight": self.weight, "taken": self.taken}

    def load(self, state: dict[str, Any]) -> None:
        self.x, self.weight, self.taken = state["x"], state["weight"], int(state["taken"])


def spoken(scene: Scene, seed: int, longest: int) -> str:
    """A caption of a scene, of at most `longest` words if the plainest one has no more."""
    text = caption(scene, seed).text
    return text if len(text.split()) <= longest else caption(scene, seed, kind="name", plain=1.0, place="none").text
