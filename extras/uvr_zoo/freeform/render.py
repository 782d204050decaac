"""Draws free-form scenes: pixels and the exact mask of every object. About 2,000 scenes a second on one core."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from ..scenes import atlas
from .scenes import Scene, box

# Background -> (top colour, bottom colour), RGB 0..255; the busy ones get shapes over it.
COLOURS = {
    "night": ((18, 22, 58), (46, 42, 96)),
    "snow": ((226, 234, 244), (248, 250, 252)),
    "sky": ((120, 184, 240), (190, 222, 248)),
    "grass": ((150, 200, 120), (86, 152, 70)),
    "sand": ((238, 216, 166), (212, 180, 120)),
    "dusk": ((120, 70, 130), (236, 146, 110)),
    "sea": ((40, 120, 160), (16, 64, 110)),
    "city": ((168, 176, 190), (128, 130, 140)),
    "confetti": ((244, 240, 232), (244, 240, 232)),
}
_DOTS = ((214, 120, 120), (120, 170, 210), (230, 200, 110), (140, 190, 140), (190, 150, 200))


@functools.cache
def sprite(style: str, name: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A sprite of side x side pixels: premultiplied colours (side, side, 3) and alpha (side, side, 1), float32."""
    image = Image.fromarray(atlas()[style, name]).convert("RGBa").resize((side, side), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.float32)
    return pixels[..., :3].copy(), pixels[..., 3:] / 255


def render(scene: Scene) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Draw a scene.

    Returns:
        image: (height, width, 3) uint8.
        masks: item index -> (height, width) bool, the pixels that show that item.
    """
    height, width = scene.canvas
    canvas = background(scene.background, scene.canvas, np.random.default_rng([8, scene.seed]))
    masks: dict[int, np.ndarray] = {}
    for index, item in enumerate(scene.items):
        colours, alpha = sprite(scene.style, item.name, item.side)
        left, top, right, bottom = box(item, scene.canvas)
        rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
        part = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        canvas[rows, columns] = colours[part] + (1 - alpha[part]) * canvas[rows, columns]
        mask = np.zeros((height, width), bool)
        mask[rows, columns] = alpha[part][..., 0] > 0.5
        for earlier in masks.values():
            earlier &= ~mask
        masks[index] = mask
    return (canvas + 0.5).clip(0, 255).astype(np.uint8), masks


def background(name: str, canvas: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(height, width, 3) float32: a ramp between the two colours, shifted a little, with a busy one's shapes."""
    height, width = canvas
    top, bottom = (np.asarray(colour, np.float32) for colour in COLOURS[name])
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    shift = rng.uniform(-8, 8, 3).astype(np.float32)
    pixels = np.broadcast_to(top * (1 - ramp) + bottom * ramp + shift, (height, width, 3)).copy()
    if name == "city":
        _buildings(pixels, rng)
    elif name == "confetti":
        _dots(pixels, rng)
    return pixels


def _buildings(pixels: np.ndarray, rng: np.random.Generator) -> None:
    """Grey blocks of differing heights with rows of windows."""
    height, width = pixels.shape[:2]
    left = -int(rng.integers(0, 8))
    while left < width:
        right, top = left + int(rng.integers(12, 24)), int(rng.integers(height // 6, height * 2 // 3))
        block = pixels[top:, max(left, 0) : right]
        block[:] = float(rng.uniform(84, 150)) + np.asarray((0, 2, 8), np.float32)
        block[3::7, 2::6] += 46
        block[4::7, 2::6] += 46
        block[3::7, 3::6] += 46
        block[4::7, 3::6] += 46
        left = right + int(rng.integers(0, 3))


def _dots(pixels: np.ndarray, rng: np.random.Generator) -> None:
    """Small pale squares strewn over the canvas."""
    height, width = pixels.shape[:2]
    for _ in range(height * width // 230):
        y, x, side, colour = (int(rng.integers(bound)) for bound in (height, width, 3, len(_DOTS)))
        pixels[y : y + side + 3, x : x + side + 3] = _DOTS[colour]


def object_patches(masks: dict[int, np.ndarray], grid: tuple[int, int], cover: float = 0.15) -> np.ndarray:
    """Item masks -> (items, *grid) bool: patches of which at least `cover` shows that item."""
    from ..scenes import patch_mask

    return np.stack([patch_mask(mask, grid, cover) for mask in masks.values()])
