"""Pictures of flows and of localisation, by matplotlib, which comes with the [zoo] and [eval] extras."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from uvr_core.errors import UVRError
from uvr_core.ops.evidence import Scores
from uvr_core.ops.masks import Mask

from .curves import band, boundary
from .flows import Flows
from .localisation import localisation_of

DPI = 100
COLOURS = {"text": "#2b6cb0", "output": "#c05621", "reference": "#2f855a", "located": "#b83280", "rest": "#718096"}
_READERS = (
    ("output", "reads"),
    ("located", "output reads"),
    ("rest", "of the output reads"),
    ("text", "reads"),
    ("reference", "reads"),
)
_HIT, _TRUE = (255, 255, 255), (0, 220, 255)


def require() -> None:
    """Raise UVRError, with the remedy, unless matplotlib is there. Does not import it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UVRError("figures are drawn with matplotlib, which is not installed: pip install 'uvr-core[eval]'")


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_flows(flows: Flows, path: Path, title: str = "") -> None:
    """One panel per reading role: whose tokens it attends to, over steps; mean over blocks, 95% band over images.

    A dotted line marks the stage boundary of the curve of its colour. The panels are 3.2 inches wide at 100 dpi.
    """
    measured = flows.directions()
    panels = [(role, verb) for role, verb in _READERS if any(into == role for _, into in measured)]
    figure = _figure(3.2 * len(panels), 3.2)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (role, verb) in zip(axes, panels, strict=True):
        for source in ("text", "output", "reference"):
            if (source, role) not in measured:
                continue
            curve = flows.curve(source, role)
            mean, low, high = band(curve)
            axis.plot(mean, color=COLOURS[source], label=source)
            axis.fill_between(range(len(mean)), low, high, color=COLOURS[source], alpha=0.2, lw=0)
            if (step := boundary(curve).step) is not None:
                axis.axvline(step, color=COLOURS[source], ls=":", lw=1)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(title=f"{role} {verb}", xlabel="step", ylim=(0, 1))
    axes[0].set_ylabel("share of attention")
    axes[0].legend(fontsize=8)
    figure.suptitle(title or f"{len(flows.images)} images, mean over {len(flows.blocks)} blocks")
    figure.savefig(path, dpi=DPI)


def draw_heatmap(flows: Flows, path: Path) -> None:
    """One panel per flow between text, output and reference: block by step, mean over images, each on its own scale.

    Rows are reading roles, columns are roles that are read. A panel is 3.2 by 2.6 inches at 100 dpi.
    """
    roles = [role for role in ("output", "text", "reference") if any(into == role for _, into in flows.directions())]
    figure = _figure(3.2 * len(roles), 2.6 * len(roles))
    axes = figure.subplots(len(roles), len(roles), squeeze=False)
    for line, into in zip(axes, roles, strict=True):
        for axis, source in zip(line, roles, strict=True):
            values = np.nanmean(flows.by_block(source, into), 0).T  # (L, T)
            shown = axis.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest")
            figure.colorbar(shown, ax=axis)
            axis.set(title=f"{source} to {into}", xlabel="step", ylabel="block")
            axis.set_yticks(*_ticks(flows.blocks), fontsize=7)
    figure.savefig(path, dpi=DPI)


def short(block: str) -> str:
    """A block's path in two words: "double 3", "single 0", or its own first parts."""
    name = block.removesuffix(".attn")
    return name.replace("single_transformer_blocks.", "single ").replace("transformer_blocks.", "double ")


def _ticks(blocks: Sequence[str], most: int = 12) -> tuple[list[int], list[str]]:
    places = sorted({round(i) for i in np.linspace(0, len(blocks) - 1, min(most, len(blocks)))})
    return places, [short(blocks[i]) for i in places]


def draw_localisation(flows: Flows, path: Path, title: str = "") -> None:
    """Patch AUROC over steps, a line with its 95% band per probe; 5.2 by 3.2 inches at 100 dpi.

    Raises:
        UVRError: nothing to draw: no masks, no scores, or no image that shows the concept.
    """
    measured = localisation_of(flows)
    if not measured:
        raise UVRError("no localisation to draw: no scores, no masks, or no image that shows the concept")
    figure = _figure(5.2, 3.2)
    axis = figure.subplots()
    for probe, line in measured.items():
        (drawn,) = axis.plot(line.auroc, label=short(probe))
        axis.fill_between(range(len(line.auroc)), line.low, line.high, color=drawn.get_color(), alpha=0.2, lw=0)
    axis.axhline(0.5, color="grey", lw=0.7, ls=":")
    images = next(iter(measured.values())).images
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="step", ylabel="patch AUROC", ylim=(0, 1.02), title=title or f"localisation, {images} images")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=DPI)


def mask_frames(
    flows: Flows, probe: str, threshold: float | None = None, *, most: int = 6, side: int = 128
) -> list[Image.Image]:
    """The detector's scores on the finished pictures, one frame per step; the pictures side by side.

    Red: the score, from the 50th to the 99th percentile over an image's patches and steps. White outline: patches at or
    above the threshold. Blue outline: the true mask, where there is one.

    Args:
        most: images shown, the first ones.
        side: pixels of a picture's longer side.

    Returns:
        T frames of one size.
    """
    scores = flows.scores[probe][:most]
    frames = []
    for step, sigma in enumerate(flows.sigmas):
        tiles = []
        for i, picture in enumerate(flows.images[: len(scores)]):
            heat = _heat(scores[i])[step].reshape(flows.grid)
            hits = None if threshold is None else scores[i, step].reshape(flows.grid) >= threshold
            tiles.append(_tile(picture, heat, side, hits, None if flows.masks is None else flows.masks[i]))
        frames.append(_row(tiles, f"step {step}, noise {sigma:.2f}"))
    return frames


def draw_masks(flows: Flows, probe: str, folder: Path, threshold: float | None = None) -> list[str]:
    """Write masks.gif, three steps a second, and masks.png, at most 10 steps below one another; the files' names."""
    frames = mask_frames(flows, probe, threshold)
    frames[0].save(folder / "masks.gif", save_all=True, append_images=frames[1:], duration=333, loop=0)
    shown = sorted({round(i) for i in np.linspace(0, len(frames) - 1, min(10, len(frames)))})
    width, height = frames[0].size
    page = Image.new("RGB", (width, height * len(shown)), "white")
    for line, step in enumerate(shown):
        page.paste(frames[step], (0, line * height))
    page.save(folder / "masks.png")
    return ["masks.gif", "masks.png"]


def _heat(scores: Scores) -> npt.NDArray[np.float64]:
    """(T, N) scores of one image -> 0..1."""
    low, high = np.nanpercentile(scores, (50, 99))
    return np.asarray(np.clip((scores - low) / max(high - low, 1e-12), 0, 1), dtype=np.float64)


def _tile(
    image: Image.Image, heat: npt.NDArray[np.float64], side: int, hits: Mask | None, true: Mask | None
) -> Image.Image:
    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    tile = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS)).astype(float)
    alpha = Image.fromarray((255 * heat).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    weight = 0.5 * np.asarray(alpha)[..., None] / 255
    painted = Image.fromarray(((1 - weight) * tile + weight * np.array([230.0, 0.0, 40.0])).astype(np.uint8))
    for mask, colour, inset in ((true, _TRUE, 0), (hits, _HIT, 2)):
        if mask is not None:
            _outline(painted, mask, colour, inset)
    return painted


def _outline(image: Image.Image, mask: Mask, colour: tuple[int, int, int], inset: int) -> None:
    """Draw the border of the patches in `mask` (H, W), `inset` pixels inside of it."""
    draw = ImageDraw.Draw(image)
    padded = np.pad(mask, 1)
    tall, wide = image.height / mask.shape[0], image.width / mask.shape[1]
    for y, x in zip(*np.nonzero(mask), strict=True):
        above, below = not padded[y, x + 1], not padded[y + 2, x + 1]
        before, after = not padded[y + 1, x], not padded[y + 1, x + 2]
        left, right = round(x * wide) + inset * before, round((x + 1) * wide) - 1 - inset * after
        top, bottom = round(y * tall) + inset * above, round((y + 1) * tall) - 1 - inset * below
        for outer, *line in (
            (above, left, top, right, top),
            (below, left, bottom, right, bottom),
            (before, left, top, left, bottom),
            (after, right, top, right, bottom),
        ):
            if outer:
                draw.line(line, fill=colour, width=2)


def _row(tiles: Sequence[Image.Image], words: str, gap: int = 4) -> Image.Image:
    height = max(tile.height for tile in tiles)
    page = Image.new("RGB", (sum(tile.width + gap for tile in tiles) + gap, height + gap + 16), "white")
    ImageDraw.Draw(page).text((gap, 2), words, fill="black")
    left = gap
    for tile in tiles:
        page.paste(tile, (left, 16))
        left += tile.width + gap
    return page
