"""Encoded training pictures: a pool per canvas that takes in fresh ones at every step; encoding is no bottleneck then.

A picture stays as long as its pool is full of older ones. It is encoded with all of its captions as the pipeline
itself encodes them. With workers, pictures are drawn in other processes, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..architectures import Architecture, Condition, pack
from ..vae import to_tensor
from .captions import caption
from .edits import sample_edit
from .render import object_patches, render
from .scenes import Scene, sample

PATCH = 8  # pixels of a token's side
_KINDS = 64  # room for canvases in a seed
Canvas = tuple[int, int]


@attrs.frozen
class Mix:
    """What training pictures are drawn from.

    Attributes:
        objects, styles: the vocabulary.
        busy: share of busy backgrounds.
        edits: pictures have a source, and an instruction that leads from it to them.
        captions: of each picture; an edit has one instruction.
        words: that a caption has at most, if the plainest one has no more.
    """

    objects: tuple[str, ...]
    styles: tuple[str, ...]
    busy: float = 0.12
    edits: bool = False
    captions: int = 3
    words: int = 38


@attrs.frozen
class Example:
    """One training picture to be: its scene, what is said of it, and the scene it is made from (editing)."""

    target: Scene
    texts: tuple[str, ...]
    source: Scene | None = None


@attrs.frozen(eq=False)
class Drawn:
    """An example's pixels: (H, W, 3) uint8 of target and source, and the weights (h, w) of the target's patches."""

    example: Example
    picture: np.ndarray
    weight: np.ndarray
    source: np.ndarray | None


def spoken(scene: Scene, seed: int, longest: int) -> str:
    """A caption of a scene, of at most `longest` words if the plainest one has no more."""
    text = caption(scene, seed).text
    return text if len(text.split()) <= longest else caption(scene, seed, kind="name", plain=1.0, place="none").text


def example(mix: Mix, canvas: Canvas, number: int) -> Example:
    """The training example of that number on a canvas."""
    kind = (canvas[0] // PATCH * 7 + canvas[1] // PATCH) % _KINDS
    seed = number * _KINDS + kind
    if mix.edits:
        edit = sample_edit(seed, objects=mix.objects, styles=mix.styles, canvas=canvas)
        return Example(edit.target, (edit.instruction,), edit.source)
    scene = sample(seed, objects=mix.objects, styles=mix.styles, canvas=canvas, busy=mix.busy)
    texts = tuple(spoken(scene, seed * mix.captions + i, mix.words) for i in range(mix.captions))
    return Example(scene, texts)


def weights(masks: dict[int, np.ndarray], grid: tuple[int, int]) -> np.ndarray:
    """Patch weights: 1, and more on objects, the more the smaller they are, so that none is lost in the mean."""
    patches = object_patches(masks, grid)  # (items, h, w)
    area = patches.sum((1, 2), keepdims=True).clip(1)
    return 1 + (patches * np.clip(14 / area, 0.5, 3)).max(0)


def draw(mix: Mix, canvas: Canvas, number: int) -> Drawn:
    """Render an example. What an edit changes weighs as an object does."""
    drawn = example(mix, canvas, number)
    grid = (canvas[0] // PATCH, canvas[1] // PATCH)
    picture, masks = render(drawn.target)
    weight, source = weights(masks, grid), None
    if drawn.source is not None:
        source, before = render(drawn.source)
        weight = np.maximum(weight, weights(before, grid))
    return Drawn(drawn, picture, weight, source)


class Supply(Dataset[Drawn]):
    """Draws what it is asked for by (canvas, number)."""

    def __init__(self, mix: Mix):
        self.mix = mix

    def __getitem__(self, key: tuple[Canvas, int]) -> Drawn:
        return draw(self.mix, *key)

    def loader(self, batches: Sequence[Any] | Iterator[Any], workers: int) -> Iterator[list[Drawn]]:
        """Drawn lists of every list of keys, in order."""
        return iter(DataLoader(self, batch_sampler=batches, num_workers=workers, collate_fn=list))  # type: ignore[arg-type]


class Ring:
    """Up to `size` rows of some columns, the oldest replaced first.

    Attributes:
        columns: name -> (size, ...) of a type, on `device`.
        taken: how many rows it has taken in so far.
    """

    def __init__(self, size: int, device: str = "cpu", dtype: torch.dtype = torch.float16):
        self.size, self.device, self.dtype, self.taken = size, device, dtype, 0
        self.columns: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        return min(self.taken, self.size)

    def put(self, rows: Condition) -> None:
        """Keep some more rows, name -> (K, ...)."""
        count = len(next(iter(rows.values())))
        slots = torch.tensor([(self.taken + i) % self.size for i in range(count)], device=self.device)
        for name, value in rows.items():
            if name not in self.columns:
                shape = (self.size, *value.shape[1:])
                self.columns[name] = torch.zeros(shape, dtype=self.dtype, device=self.device)
            self.columns[name][slots] = value.to(self.device, self.dtype)
        self.taken += count

    def some(self, size: int, generator: torch.Generator) -> torch.Tensor:
        """(size,) random indices of rows that are held."""
        return torch.randint(len(self), (size,), generator=generator)

    def at(self, index: torch.Tensor) -> Condition:
        """The rows of some indices."""
        return {name: column[index.to(self.device)] for name, column in self.columns.items()}


class Pool(Ring):
    """Encoded examples of one canvas: `x` (N, 16), `weight` (N,), `reference` (N, 16) of editing, `text.NAME`
    (captions, ...) of the condition, and `empty.NAME` where the empty prompt's condition depends on the picture."""

    def __init__(self, canvas: Canvas, size: int, device: str = "cpu"):
        super().__init__(size, device)
        self.canvas = canvas
        self.grid = (canvas[0] // PATCH, canvas[1] // PATCH)

    @torch.no_grad()
    def take(self, drawn: list[Drawn], pipe: Any, family: Architecture) -> None:
        """Encode some more examples and keep them."""
        self.put(self._encoded(drawn, pipe, family))

    def _encoded(self, drawn: list[Drawn], pipe: Any, family: Architecture) -> Condition:
        def tokens(pictures: list[Any]) -> torch.Tensor:
            return pack(family.latents(pipe, to_tensor(np.stack(pictures)).to(pipe.vae.device)))

        columns = {
            "x": tokens([d.picture for d in drawn]),
            "weight": torch.from_numpy(np.stack([d.weight for d in drawn])).flatten(1),
        }
        if drawn[0].source is not None:
            columns["reference"] = tokens([d.source for d in drawn])
        texts = [text for d in drawn for text in d.example.texts]
        each = len(texts) // len(drawn)
        seen = [Image.fromarray(d.source) for d in drawn if d.source is not None] if family.sees_image else None
        condition = family.encode(pipe, texts, seen)
        columns |= {f"text.{name}": value.unflatten(0, (len(drawn), each)) for name, value in condition.items()}
        if seen is not None:
            empty = family.encode(pipe, [""] * len(drawn), seen)
            columns |= {f"empty.{name}": value for name, value in empty.items()}
        return columns

    def rows(self, size: int, generator: torch.Generator) -> Condition:
        """Columns of a random batch, float32, each with one of its captions."""
        index = self.some(size, generator)
        which = torch.randint(2**31, (size,), generator=generator)
        rows = {}
        for name, row in self.at(index).items():
            if name.startswith("text."):
                row = row[torch.arange(size, device=self.device), (which % row.shape[1]).to(self.device)]
            rows[name] = row.float()
        return rows
