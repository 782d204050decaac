"""What pictures of a concept show of it inside the model, gathered call by call into a bank's tensors."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs
import numpy as np
import torch

from ..engine.readings import Compared, Reader, contrast, features, text_rows
from ..errors import UVRError
from ..intercept.calls import JointCall
from ..ops.masks import Mask, ring_of
from ..tokens import Role
from .moments import Moments, Shared, moments_of, whitened_direction

LEAST_IMAGES = 8  # per way in (source image, instruction), to tell them apart
FEEDS = 2.5  # flow contrast above which a text token counts as feeding the concept; as in the `selective` policy

Key = tuple[str, int]  # probe, step


@attrs.define(eq=False)
class Reservoir:
    """At most `limit` of the rows that it was given, each as likely as any other, in their order."""

    limit: int
    generator: torch.Generator
    rows: torch.Tensor | None = None
    lots: torch.Tensor = attrs.field(factory=lambda: torch.zeros(0))

    def add(self, rows: torch.Tensor) -> None:
        """Add rows (n, C)."""
        rows = rows if self.rows is None else torch.cat([self.rows, rows])
        lots = torch.cat([self.lots, torch.rand(len(rows) - len(self.lots), generator=self.generator)])
        kept = lots.topk(min(self.limit, len(lots)), largest=False).indices.sort().values
        self.rows, self.lots = rows[kept], lots[kept]


@attrs.define(eq=False)
class Gathered:
    """The features of a set of images, by probe and step. It grows with neither images nor patches.

    Attributes:
        width: C; features may be 2C wide, with the facing reference token's behind.
        max_anchors, seed: how many anchors are kept of each probe, and which.
        unsafe, other: moments of the patches inside a mask, and of those outside of it and its ring.
        origin: moments of an image's mean patch, by whether its source shows the concept.
        anchors: (n, C) of the last step; by probe alone.
        tokens: sum of (C,) and their number, see feeding_rows.
        levels: noise level of each step.
        images: how many showed the concept; drawn: of how many.
    """

    width: int
    max_anchors: int = 256
    seed: int = 0
    shared: dict[str, Shared] = attrs.field(factory=lambda: defaultdict(Shared))
    unsafe: dict[Key, Moments] = attrs.field(factory=dict)
    other: dict[Key, Moments] = attrs.field(factory=dict)
    origin: dict[tuple[str, int, bool], Moments] = attrs.field(factory=dict)
    anchors: dict[str, Reservoir] = attrs.field(factory=dict)
    tokens: dict[Key, tuple[torch.Tensor, int]] = attrs.field(factory=dict)
    levels: dict[int, float] = attrs.field(factory=dict)
    images: int = 0
    drawn: int = 0

    @property
    def sigmas(self) -> list[float]:
        """The steps' noise levels."""
        return [self.levels[step] for step in sorted(self.levels)] or [1.0]

    @contextmanager
    def showing(self, masks: Mask, by_source: Mask | None) -> Iterator[Reader]:
        """A reader of one batch of images that should show the concept.

        Args:
            masks: (B, H, W) bool, where it is; an image whose mask is empty is left out.
            by_source: (B,) bool, whether the source image shows it; None: not known.
        """
        rings = np.stack([ring_of(mask) for mask in masks])
        outside = ~(masks | rings)
        shown = [sample for sample, mask in enumerate(masks) if mask.any()]
        latest: dict[str, list[torch.Tensor]] = {}

        @functools.cache
        def placed(device: torch.device) -> tuple[Compared, list[tuple[torch.Tensor, torch.Tensor]]]:
            """Where a flow contrast is measured, and the places of each shown image's patches: inside, outside."""
            places = [(np.flatnonzero(masks[i]), np.flatnonzero(outside[i])) for i in shown]
            on_device = [tuple(torch.from_numpy(side).to(device) for side in sides) for sides in places]
            return Compared.of(masks, rings, device), on_device  # type: ignore[return-value]

        def read(call: JointCall) -> None:
            if masks.shape[1:] != call.layout.grid:
                raise UVRError(
                    f"masks: expected {call.layout.grid} (rows, columns of patches) for each image, got "
                    f"{masks.shape[1:]}"
                )
            if not len(shown):
                return
            x, (compared, places) = features(call), placed(call.query.device)
            latest[call.tap] = []
            for sample, (inside, rest) in zip(shown, places, strict=True):
                patches = x[sample, inside]
                self._add_image(call, patches, x[sample, rest], None if by_source is None else bool(by_source[sample]))
                latest[call.tap].append(patches[:, : self.width])
            if call.queries.count(Role.TEXT):
                self._add_tokens(call, compared, [sample for sample in shown if outside[sample].any()])

        yield read
        self.drawn, self.images = self.drawn + len(masks), self.images + len(shown)
        for path, images in latest.items():
            if path not in self.anchors:
                self.anchors[path] = Reservoir(self.max_anchors, torch.Generator().manual_seed(self.seed))
            for patches in images:
                self.anchors[path].add(patches.cpu())

    @contextmanager
    def benign(self) -> Iterator[Reader]:
        """A reader of one batch of images without the concept: all their patches are others."""

        def read(call: JointCall) -> None:
            x = features(call).flatten(0, 1)
            self._class(self.other, call, x.shape[1]).add(x)

        yield read

    def _class(self, classes: dict[Key, Moments], call: JointCall, width: int) -> Moments:
        key = (call.tap, call.forward.step)
        self.levels[call.forward.step] = call.forward.sigma
        if key not in classes:
            classes[key] = moments_of(width, self.shared[call.tap])
        return classes[key]

    def _add_image(self, call: JointCall, inside: torch.Tensor, rest: torch.Tensor, by_source: bool | None) -> None:
        """Add the patches (n, C or 2C) of one image."""
        width = inside.shape[1]
        self._class(self.unsafe, call, width).add(inside)
        self._class(self.other, call, width).add(rest)
        if by_source is not None:
            key = (call.tap, call.forward.step, by_source)
            if key not in self.origin:
                self.origin[key] = moments_of(width, self.shared[call.tap])
            self.origin[key].add(inside.mean(0, keepdim=True))

    def _add_tokens(self, call: JointCall, compared: Compared, samples: Sequence[int]) -> None:
        rows, weight = text_rows(call), contrast(call, compared, references=False)[0]
        key = (call.tap, call.forward.step)
        for sample in samples:
            total, count = self.tokens.get(key, (torch.zeros(rows.shape[2]), 0))
            self.tokens[key] = total + feeding_rows(rows[sample], weight[sample]).cpu(), count + 1

    def tensors(self, path: str) -> dict[str, torch.Tensor]:
        """The bank's tensors of one probe; see uvr_core.concepts.bank."""
        steps = range(len(self.levels))
        pairs = [whitened_direction(self.unsafe[path, step], self.other[path, step]) for step in steps]
        anchors = self.anchors[path].rows
        assert anchors is not None
        tensors = {
            f"direction/{path}": torch.stack([direction for direction, _ in pairs]),
            f"offset/{path}": torch.tensor([offset for _, offset in pairs]),
            f"anchors/{path}": anchors,
        }
        tensors |= origin_tensors(path, len(steps), self.origin)
        if all((path, step) in self.tokens for step in steps):
            pairs_of = [self.tokens[path, step] for step in steps]
            tensors[f"token/{path}"] = torch.stack([total / count for total, count in pairs_of])
        return tensors


def origin_tensors(path: str, steps: int, means: dict[tuple[str, int, bool], Moments]) -> dict[str, torch.Tensor]:
    """origin/ and origin_offset/ of one probe, if both ways in occurred at least LEAST_IMAGES times."""
    least = Moments()
    if any(means.get((path, step, way), least).n < LEAST_IMAGES for step in range(steps) for way in (True, False)):
        return {}
    directions, offsets = [], []
    for step in range(steps):
        source, words = means[path, step, True], means[path, step, False]
        direction, offset = whitened_direction(source, words, shrink=0.3)
        directions.append(direction)
        offsets.append(offset - 0.5 * float((source.mean - words.mean).float() @ direction))
    return {f"origin/{path}": torch.stack(directions), f"origin_offset/{path}": torch.tensor(offsets)}


def feeding_rows(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(C,): mean output of the text tokens that feed a region most.

    Tokens with a flow contrast above 2.5 are taken, or the one with the largest.

    Args:
        rows: (T, C), attention output at the text tokens.
        weight: (T,), their flow contrast, see uvr_core.ops.mass.flow_contrast.
    """
    feeding = weight > FEEDS
    feeding[weight.argmax()] = True
    return rows[feeding].mean(0)
