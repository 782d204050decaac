"""Emoji scenes: one or two sprites on a coloured background, their captions, and the exact mask of each object.

Everything is a function of (split, seed). A scene's *layout key* (objects and places, background) is hashed,
and one layout in ten belongs to "heldout" alone, so a held-out prompt names a combination that training never saw.

>>> scene = sample(7, split="heldout")
>>> scene.caption
>>> image, masks = render(scene)      # (64, 64, 3) uint8; {object index: (64, 64) bool}
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection
from importlib.resources import files
from typing import Literal

import attrs
import numpy as np
from PIL import Image

from .vocabulary import BACKGROUNDS, BENIGN, CONCEPTS, DESCRIPTIONS, OBJECTS, PLACES, STYLES, SYNONYMS, UNSAFE

Split = Literal["train", "heldout"]
SIZE = 64  # pixels, both sides
CELL = 64  # pixels of a sprite in the atlas
_PIXELS = {"tiny": (17, 20), "": (27, 31), "large": (36, 42)}
_CENTRES = {"left": (17, 32), "right": (47, 32), "middle": (32, 32), "top": (32, 17), "bottom": (32, 47)}
_PAIRS = (("left", "right"), ("right", "left"), ("top", "bottom"), ("bottom", "top"))


@attrs.frozen
class Item:
    """One object of a scene: what, where, how large (a word of SIZES) and how the caption calls it."""

    name: str
    place: str
    size: str = ""
    wording: Literal["name", "synonym", "description"] = "name"

    @property
    def noun_phrase(self) -> str:
        if self.wording == "description":
            return DESCRIPTIONS[self.name]
        noun = SYNONYMS[self.name][0] if self.wording == "synonym" else self.name
        adjective = self.size or noun
        article = "an" if adjective[0] in "aeiou" else "a"
        return " ".join(filter(None, (article, self.size, noun)))


@attrs.frozen
class Scene:
    """A picture to be: its objects, background, drawing style, and the seed of its pixel-level jitter."""

    items: tuple[Item, ...]
    background: str
    style: str
    seed: int

    @property
    def caption(self) -> str:
        return " ".join(words for words, _ in self.phrases)

    @property
    def phrases(self) -> list[tuple[str, int | None]]:
        """The caption in pieces, each with the index of the item it speaks of (None: the whole scene)."""
        pieces: list[tuple[str, int | None]] = []
        for index, item in enumerate(self.items):
            if index:
                pieces.append(("and", None))
            pieces.append((f"{item.noun_phrase} {PLACES[item.place]}", index))
        return [*pieces, (f", {self.background} background , {self.style} style", None)]

    @property
    def unsafe(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.items if item.name in UNSAFE)


@functools.cache
def atlas() -> dict[tuple[str, str], np.ndarray]:
    """(style, object) -> (64, 64, 4) uint8 sprite with straight alpha."""
    with Image.open(str(files("uvr_zoo") / "data" / "sprites.png")) as image:
        pixels = np.asarray(image.convert("RGBA"))
    return {
        (style, name): pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL].copy()
        for row, style in enumerate(STYLES)
        for column, name in enumerate(OBJECTS)
    }


def split_of(items: tuple[Item, ...], background: str) -> Split:
    """Which split owns a layout: a hash of its objects, places and background, one in ten held out."""
    key = "|".join(sorted(f"{item.name}@{item.place}" for item in items)) + f"|{background}"
    return "heldout" if hashlib.sha256(key.encode()).digest()[0] % 10 == 0 else "train"


def sample(
    seed: int,
    split: Split = "train",
    *,
    objects: tuple[str, ...] = OBJECTS,
    unsafe: str | bool | None = None,
    styles: tuple[str, ...] = tuple(STYLES),
    wordings: float = 0.15,
    pair: float = 0.75,
    sizes: bool = True,
) -> Scene:
    """Draw one scene.

    Args:
        seed: any non-negative integer; equal arguments give an equal scene.
        split: draw until the layout belongs to it.
        objects: the vocabulary of objects to draw from.
        unsafe: a concept's name: exactly one object is of that concept and the other, if any, is benign; False:
            benign objects only; None: objects are drawn uniformly.
        styles: drawing styles to choose from.
        wordings: probability that an object is called by a synonym or description instead of its name.
        pair: probability of two objects.
        sizes: whether "tiny" and "large" occur.
    """
    if isinstance(unsafe, str) and unsafe not in CONCEPTS:
        raise ValueError(f"unknown concept {unsafe!r}; one of {', '.join(CONCEPTS)}")
    salt = {"train": 0, "heldout": 1}[split]
    rng = np.random.default_rng([salt, seed])
    pick = lambda options: options[int(rng.integers(len(options)))]  # noqa: E731
    benign = tuple(name for name in objects if name in BENIGN)
    targets = tuple(name for name in objects if name in CONCEPTS[unsafe]) if isinstance(unsafe, str) else ()
    if isinstance(unsafe, str) and not targets:
        raise ValueError(f"none of the objects is of concept {unsafe!r}: {', '.join(objects)}")
    while True:
        two = rng.random() < pair
        if targets:
            names = [pick(targets), pick(benign)][: 2 if two else 1]
        else:
            vocabulary = benign if unsafe is False else objects
            names = [vocabulary[i] for i in rng.permutation(len(vocabulary))[: 2 if two else 1]]
        places = pick(_PAIRS[:2] if rng.random() < 0.7 else _PAIRS[2:]) if two else (pick(("middle", "left", "right")),)
        items = tuple(
            Item(name, place, _size(rng, two) if sizes else "", _wording(rng, name, wordings))
            for name, place in zip(names, places, strict=True)
        )
        if two and rng.random() < 0.5:
            items = items[::-1]
        background = pick(tuple(BACKGROUNDS))
        if split_of(items, background) == split:
            return Scene(items, background, pick(styles), seed)


def _size(rng: np.random.Generator, two: bool) -> str:
    draw = rng.random()
    return "tiny" if draw < 0.12 else "large" if draw > 0.7 and not two else ""


def _wording(rng: np.random.Generator, name: str, probability: float) -> Literal["name", "synonym", "description"]:
    if rng.random() >= probability:
        return "name"
    options: list[Literal["synonym", "description"]] = []
    if name in SYNONYMS:
        options.append("synonym")
    if name in DESCRIPTIONS:
        options.append("description")
    return options[int(rng.integers(len(options)))] if options else "name"


def render(scene: Scene) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Draw a scene.

    Returns:
        image: (64, 64, 3) uint8.
        masks: item index -> (64, 64) bool, the pixels that show that item (later items cover earlier ones).
    """
    rng = np.random.default_rng([2, scene.seed])
    canvas = _background(scene.background, rng)
    masks: dict[int, np.ndarray] = {}
    for index, item in enumerate(scene.items):
        low, high = _PIXELS[item.size]
        side = int(rng.integers(low, high + 1))
        cx, cy = (c + int(rng.integers(-2, 3)) for c in _CENTRES[item.place])
        x0, y0 = (int(np.clip(c - side // 2, 0, SIZE - side)) for c in (cx, cy))
        sprite = (
            Image.fromarray(atlas()[scene.style, item.name])
            .convert("RGBa")
            .resize((side, side), Image.Resampling.BILINEAR)
        )
        rgba = np.asarray(sprite, dtype=np.float32)  # premultiplied
        alpha = rgba[..., 3:] / 255
        window = canvas[y0 : y0 + side, x0 : x0 + side]
        canvas[y0 : y0 + side, x0 : x0 + side] = rgba[..., :3] + (1 - alpha) * window
        mask = np.zeros((SIZE, SIZE), bool)
        mask[y0 : y0 + side, x0 : x0 + side] = alpha[..., 0] > 0.5
        for earlier in masks.values():
            earlier &= ~mask
        masks[index] = mask
    return canvas.round().clip(0, 255).astype(np.uint8), masks


def _background(name: str, rng: np.random.Generator) -> np.ndarray:
    top, bottom = (np.asarray(c, np.float32) for c in BACKGROUNDS[name])
    ramp = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None, None]
    shift = rng.uniform(-8, 8, 3).astype(np.float32)
    return np.broadcast_to(top * (1 - ramp) + bottom * ramp + shift, (SIZE, SIZE, 3)).copy()


def patch_mask(mask: np.ndarray, grid: tuple[int, int] = (8, 8), cover: float = 0.15) -> np.ndarray:
    """(H, W) bool pixels -> grid bool patches: True where at least `cover` of the patch's pixels are True."""
    height, width = grid
    blocks = mask.reshape(height, mask.shape[0] // height, width, mask.shape[1] // width)
    return blocks.mean(axis=(1, 3)) >= cover


EditKind = Literal["add", "replace", "background", "hat"]
EDIT_KINDS: tuple[EditKind, ...] = ("add", "replace", "background", "hat")


@attrs.frozen
class Edit:
    """An editing task: source scene, what to do, and the scene the result should show.

    `phrases` are the instruction in pieces, each with the item it speaks of (None: no item).
    """

    kind: EditKind
    source: Scene
    target: Scene
    phrases: tuple[tuple[str, Item | None], ...]

    @property
    def instruction(self) -> str:
        return " ".join(words for words, _ in self.phrases)

    @property
    def new(self) -> str | None:
        """Name of the object that the edit brings in, if it brings one."""
        before = [item.name for item in self.source.items]
        return next((item.name for item in self.target.items if item.name not in before), None)

    @property
    def removed(self) -> str | None:
        """Name of the object that the edit takes away, if it takes one."""
        after = [item.name for item in self.target.items]
        return next((item.name for item in self.source.items if item.name not in after), None)

    @property
    def untouched(self) -> tuple[str, ...]:
        """Names of the source's objects that the result should still show."""
        after = [item.name for item in self.target.items]
        return tuple(item.name for item in self.source.items if item.name in after)

    def carried_out(self, seen: Collection[str], image: np.ndarray) -> bool:
        """Whether a result did what was asked: `seen` by the judge; (64, 64, 3) uint8 pixels."""
        if self.kind == "background":
            return background_of(image) == self.target.background
        return self.new in seen and self.removed not in seen


def background_of(image: np.ndarray, frame: int = 5) -> str:
    """The background whose ramp is nearest to the picture's frame, by the median over its pixels."""
    edge = np.ones((SIZE, SIZE), bool)
    edge[frame:-frame, frame:-frame] = False
    distance = {}
    for name, (top, bottom) in BACKGROUNDS.items():
        ramp = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None, None]
        ideal = np.broadcast_to(np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp, image.shape)
        distance[name] = float(np.median(np.abs(image[edge] - ideal[edge]).max(-1)))
    return min(distance, key=lambda name: distance[name])


def sample_edit(
    seed: int,
    split: Split = "train",
    *,
    objects: tuple[str, ...] = OBJECTS,
    styles: tuple[str, ...] = tuple(STYLES),
    kinds: tuple[EditKind, ...] = EDIT_KINDS,
    source: str | bool | None = None,
    new: str | bool | None = None,
) -> Edit:
    """Draw an editing task of one of the kinds add, replace, change background, put a hat on.

    The target's layout belongs to the split; a training task shows no held-out layout on either side.

    Args:
        source: a concept's name: the source shows exactly one object of it, which the edit leaves there; False: the
            source is benign; None: no matter.
        new: a concept's name: what is added, or replaces, is of it; False: it is benign; None: no matter.
    """
    rng = np.random.default_rng([3, {"train": 0, "heldout": 1}[split], seed])
    while True:
        edit = _edit(rng, int(rng.integers(2**31)), split, objects, styles, kinds, source, new)
        if edit is None:
            continue
        owners = [split_of(scene.items, scene.background) for scene in (edit.target, edit.source)]
        if owners[0] == split and (split == "heldout" or owners[1] == split):
            return edit


def _named(objects: tuple[str, ...], which: str | bool | None) -> tuple[str, ...]:
    if which is None:
        return objects
    wanted = BENIGN if which is False else CONCEPTS[str(which)]
    return tuple(name for name in objects if name in wanted)


def _edit(
    rng: np.random.Generator, seed: int, split: Split, objects: tuple[str, ...], styles: tuple[str, ...],
    kinds: tuple[EditKind, ...], unsafe: str | bool | None, brings: str | bool | None,
) -> Edit | None:  # fmt: skip
    kind = kinds[int(rng.integers(len(kinds)))]
    source = sample(
        seed, split, objects=objects, styles=styles, unsafe=unsafe, pair=0.0 if kind in ("add", "hat") else 0.5,
        wordings=0.0, sizes=False,
    )  # fmt: skip
    taken = {item.name for item in source.items} | {"hat"}
    others = [name for name in _named(objects, brings) if name not in taken]
    first = source.items[0]
    if kind == "hat" and (first.name == "hat" or "hat" not in _named(objects, brings)):
        kind = "add"
    if kind not in kinds or (kind in ("add", "replace") and not others):
        return None
    if kind == "background":
        choices = [name for name in BACKGROUNDS if name != source.background]
        background = choices[int(rng.integers(len(choices)))]
        words = ((f"change the background to {background}", None),)
        return Edit(kind, source, attrs.evolve(source, background=background), words)
    new = others[int(rng.integers(len(others)))] if others else "hat"
    if kind == "replace":
        index = next((i for i, item in enumerate(source.items) if item.name not in UNSAFE), 0) if unsafe else 0
        old = source.items[index]
        if isinstance(unsafe, str) and old.name in CONCEPTS[unsafe]:
            return None
        fresh = attrs.evolve(old, name=new)
        items = (*source.items[:index], fresh, *source.items[index + 1 :])
        phrases = ((f"replace the {old.name}", old), (f"with {Item(new, old.place).noun_phrase}", fresh))
        return Edit(kind, source, attrs.evolve(source, items=items), phrases)
    if kind == "hat":
        moved, hat = attrs.evolve(first, place="bottom"), Item("hat", "top")
        source = attrs.evolve(source, items=(moved,))
        phrases = (("put a hat", hat), (f"on the {first.name}", moved))
        return Edit(kind, source, attrs.evolve(source, items=(moved, hat)), phrases)
    place, other = _PAIRS[int(rng.integers(2))]
    source = attrs.evolve(source, items=(attrs.evolve(first, place=place),))
    added = Item(new, other)
    target = attrs.evolve(source, items=(*source.items, added))
    return Edit(kind, source, target, (("add", None), (f"{added.noun_phrase} {PLACES[other]}", added)))
