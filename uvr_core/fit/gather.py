"""What pictures of a concept show of it inside the model, gathered image by image into a bank's tensors."""

from __future__ import annotations

from collections import defaultdict

import attrs
import torch

from ..ops.masks import Mask, ring_of
from .moments import Moments, whitened_direction
from .record import Recorded

LEAST_IMAGES = 8  # per way in (source image, instruction), to tell them apart
FEEDS = 2.5  # flow contrast above which a text token counts as feeding the concept; as in the `selective` policy


def _moments() -> defaultdict[tuple[str, int], Moments]:
    return defaultdict(Moments)


@attrs.define(eq=False)
class Gathered:
    """The features of a set of images, by probe and step.

    Attributes:
        width: C; features may be 2C wide, with the facing reference token's behind.
        unsafe, other: moments of the patches inside a mask, and of those outside of it and its ring.
        origin: moments of an image's mean patch, by whether its source shows the concept.
        anchors: (n, C) of the last step; by probe alone.
        tokens: (C,) per image, see feeding_rows.
        images: how many showed the concept; drawn: of how many.
        sigmas: the steps' noise levels.
    """

    width: int
    unsafe: dict[tuple[str, int], Moments] = attrs.field(factory=_moments)
    other: dict[tuple[str, int], Moments] = attrs.field(factory=_moments)
    origin: dict[tuple[str, int, bool], Moments] = attrs.field(factory=lambda: defaultdict(Moments))
    anchors: dict[str, list[torch.Tensor]] = attrs.field(factory=lambda: defaultdict(list))
    tokens: dict[tuple[str, int], list[torch.Tensor]] = attrs.field(factory=lambda: defaultdict(list))
    images: int = 0
    drawn: int = 0
    sigmas: list[float] = attrs.field(factory=lambda: [1.0])

    def add(self, batch: Recorded, masks: Mask, by_source: Mask | None) -> None:
        """Add images that should show the concept.

        Args:
            masks: (B, H, W) bool, where it is; an image whose mask is empty is left out.
            by_source: (B,) bool, whether the source image shows it; None: not known.
        """
        self.drawn, self.sigmas = self.drawn + len(batch.images), batch.sigmas
        for sample, mask in enumerate(masks):
            if mask.any():
                self.images += 1
                self._add_image(batch, sample, mask, None if by_source is None else bool(by_source[sample]))

    def _add_image(self, batch: Recorded, sample: int, mask: Mask, by_source: bool | None) -> None:
        inside, outside = mask.reshape(-1), ~(mask | ring_of(mask)).reshape(-1)
        for (path, step), x in batch.features.items():
            patches = x[sample][inside].float()
            self.unsafe[path, step].add(patches)
            self.other[path, step].add(x[sample][outside].float())
            if by_source is not None:
                self.origin[path, step, by_source].add(patches.mean(0, keepdim=True))
            if step == len(self.sigmas) - 1:
                self.anchors[path].append(patches[:, : self.width])
        for (path, step), (rows, mass) in batch.text.items():
            token = feeding_rows(rows[sample], mass[sample], inside, outside)
            if token is not None:
                self.tokens[path, step].append(token)

    def add_benign(self, batch: Recorded) -> None:
        """Add images without the concept: all their patches are others."""
        for key, x in batch.features.items():
            self.other[key].add(x.flatten(0, 1).float())

    def tensors(self, path: str, max_anchors: int, seed: int) -> dict[str, torch.Tensor]:
        """The bank's tensors of one probe; see uvr_core.concepts.bank."""
        steps = range(len(self.sigmas))
        pairs = [whitened_direction(self.unsafe[path, step], self.other[path, step]) for step in steps]
        tensors = {
            f"direction/{path}": torch.stack([direction for direction, _ in pairs]),
            f"offset/{path}": torch.tensor([offset for _, offset in pairs]),
            f"anchors/{path}": _subset(torch.cat(self.anchors[path]), max_anchors, seed),
        }
        tensors |= origin_tensors(path, len(steps), self.origin)
        if all(self.tokens[path, step] for step in steps):
            tensors[f"token/{path}"] = torch.stack([torch.stack(self.tokens[path, step]).mean(0) for step in steps])
        return tensors


def origin_tensors(path: str, steps: int, means: dict[tuple[str, int, bool], Moments]) -> dict[str, torch.Tensor]:
    """origin/ and origin_offset/ of one probe, if both ways in occurred at least LEAST_IMAGES times."""
    if any(means[path, step, way].n < LEAST_IMAGES for step in range(steps) for way in (True, False)):
        return {}
    directions, offsets = [], []
    for step in range(steps):
        source, words = means[path, step, True], means[path, step, False]
        direction, offset = whitened_direction(source, words, shrink=0.3)
        directions.append(direction)
        offsets.append(offset - 0.5 * float((source.mean - words.mean).float() @ direction))
    return {f"origin/{path}": torch.stack(directions), f"origin_offset/{path}": torch.tensor(offsets)}


def feeding_rows(rows: torch.Tensor, mass: torch.Tensor, inside: Mask, outside: Mask) -> torch.Tensor | None:
    """Mean output of the text tokens that feed a region most.

    A token's flow contrast is the mean attention that it receives from patches inside over that from patches outside,
    as in `flow_contrast`. Tokens above 2.5 are taken, or the one with the largest contrast.

    Args:
        rows: (T, C), attention output at the text tokens.
        mass: (N, T), attention from output patches to text tokens, >= 0.
        inside, outside: (N,) bool.

    Returns:
        (C,), or None where there are no text tokens or no patches to compare.
    """
    if not len(rows) or not inside.any() or not outside.any():
        return None
    from_inside, from_outside = (mass[torch.from_numpy(side)].mean(0) for side in (inside, outside))
    contrast = torch.where(from_inside == 0, 0.0, from_inside / from_outside)
    feeding = contrast > FEEDS
    feeding[contrast.argmax()] = True
    return rows[feeding].mean(0)


def _subset(x: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    if len(x) <= count:
        return x.float()
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count].sort().values].float()
