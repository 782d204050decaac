"""Pictures beside each other, and where a concept was located in them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from uvr_core.files import write_whole


def sheet(rows: Sequence[Sequence[Image.Image]], scale: int = 2, gap: int = 4) -> Image.Image:
    """Rows of equally large images on white."""
    width, height = (side * scale for side in rows[0][0].size)
    columns = max(len(row) for row in rows)
    page = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + gap) + gap), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            page.paste(
                image.resize((width, height), Image.Resampling.LANCZOS),
                (gap + x * (width + gap), gap + y * (height + gap)),
            )
    return page


def overlay(image: Image.Image, core: np.ndarray | None, colour: tuple[int, int, int] = (255, 0, 80)) -> Image.Image:
    """The picture with the patches of `core` (H, W) bool tinted."""
    if core is None or not core.any():
        return image
    block = np.kron(core, np.ones((image.height // core.shape[0], image.width // core.shape[1]))) > 0
    pixels = np.asarray(image.convert("RGB")).astype(float)
    pixels[block] = 0.5 * pixels[block] + 0.5 * np.asarray(colour)
    return Image.fromarray(pixels.astype(np.uint8))


def contact_sheet(rows: list[tuple[str, list[Image.Image]]], label: int = 14) -> Image.Image:
    """One strip per row with its title above."""
    strips = [sheet([images]) for _, images in rows]
    page = Image.new("RGB", (max(s.width for s in strips), sum(s.height + label for s in strips)), "white")
    draw, y = ImageDraw.Draw(page), 0
    for (title, _), strip in zip(rows, strips, strict=True):
        draw.text((4, y + 1), title, fill="black")
        page.paste(strip, (0, y + label))
        y += strip.height + label
    return page


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    contents = io.BytesIO()
    picture.save(contents, format="PNG")
    write_whole(path, contents.getvalue())
