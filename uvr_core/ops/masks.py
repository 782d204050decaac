"""From patch scores to masks: morphology, components by score mass, rings, thinned and scattered patches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .evidence import Scores

Mask = npt.NDArray[np.bool_]
_CROSS = ndimage.generate_binary_structure(2, 1)
_SQUARE = ndimage.generate_binary_structure(2, 2)


def core_of(hits: Mask, scores: Scores, *, mass_ratio: float = 1.0, min_area: int = 1) -> Mask:
    """Clean one sample's hits: closing, hole filling, then components by score mass (UVR, online localisation).

    Args:
        hits: (H, W) bool, scores at or above the threshold.
        scores: (H, W) float32; only differences from the smallest hit count as mass.
        mass_ratio: components are kept, heaviest first, until they cover this share of the mass, 0..1.
        min_area: components of fewer patches are dropped.

    Returns:
        (H, W) bool, the CORE. Every kept component contains at least one hit.
    """
    if not hits.any():
        return np.zeros_like(hits)
    # The border is padded with itself, so that closing does not erode an object cut by the image's edge.
    closed = ndimage.binary_closing(np.pad(hits, 1, mode="edge"), _CROSS)[1:-1, 1:-1] | hits
    filled = ndimage.binary_fill_holes(closed)
    labels, count = ndimage.label(filled, _SQUARE)
    weight = np.where(hits, scores - scores[hits].min() + 1e-6, 0.0)
    index = np.arange(1, count + 1)
    mass = ndimage.sum_labels(weight, labels, index)
    area = ndimage.sum_labels(filled, labels, index)
    kept, covered, total = np.zeros_like(hits), 0.0, float(mass.sum())
    for component in np.argsort(-mass):
        if covered >= mass_ratio * total and kept.any():
            break
        covered += float(mass[component])
        if area[component] >= min_area:
            kept |= labels == component + 1
    return kept


def grow_from(hits: Mask, region: Mask) -> Mask:
    """(H, W) bool: the parts of `region` connected to a hit (hysteresis thresholding; hits count as region)."""
    grown: Mask = ndimage.binary_propagation(hits, structure=_SQUARE, mask=region | hits)
    return grown


def ring_of(core: Mask, radius: int = 1) -> Mask:
    """(H, W) bool: patches within `radius` (chessboard distance) of the core, the core itself excluded."""
    if radius < 1 or not core.any():
        return np.zeros_like(core)
    wide: Mask = ndimage.binary_dilation(core, _SQUARE, iterations=radius)
    return wide & ~core


def thinned(mask: Mask, count: int) -> Mask:
    """(H, W) bool: at most `count` patches of the mask, one at a jittered place in each of `count` equal stretches.

    The stretches follow reading order. The jitter (golden ratio) is the same on every call; without it the grid's
    columns could coincide with the stretches.
    """
    patches = np.flatnonzero(mask)
    if len(patches) <= count:
        return mask
    bounds = np.arange(count + 1) * len(patches) // count
    jitter = np.arange(count) * 0.6180339887498949 % 1
    kept = np.zeros_like(mask)
    kept.reshape(-1)[patches[bounds[:-1] + (jitter * np.diff(bounds)).astype(int)]] = True
    return kept


def scattered(mask: Mask, rng: np.random.Generator) -> Mask:
    """(H, W) bool: as many patches as the mask has, anywhere."""
    elsewhere = np.zeros_like(mask)
    elsewhere.reshape(-1)[rng.permutation(mask.size)[: int(mask.sum())]] = True
    return elsewhere
