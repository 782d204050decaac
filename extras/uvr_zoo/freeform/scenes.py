"""Free-form scenes: one to four objects anywhere, of any size, cut by the edge, covering or holding one another.

A scene is a function of (split, seed) and its arguments. Its *combination* (which objects, which background) is
hashed and
one in ten belongs to "heldout" alone. Lengths are pixels; the canvas may have any sides that 8 divides.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import attrs
import numpy as np

from ..vocabulary import BENIGN, CONCEPTS, OBJECTS, STYLES, UNSAFE
from .wordings import BACKGROUND_WORDS, Split

CANVAS = (96, 96)  # height, width
SIDES = (18.0, 54.0)  # of an object's square, smallest and largest
Relation = Literal["apart", "beside", "behind", "holds", "above"]
RELATIONS: tuple[Relation, ...] = ("apart", "beside", "behind", "holds", "above")
_RELATION_CHANCES = (0.6, 0.14, 0.08, 0.1, 0.08)
_COUNTS = (0.42, 0.40, 0.12, 0.06)  # chances of one to four objects
_BUSY = ("city", "confetti")
_HIDDEN = 0.4  # of an object's square, at most, is covered or cut off
_SALT = {"train": 0, "heldout": 1}


@attrs.frozen
class Item:
    """One object: its name, the centre of its square as shares of the canvas (across, down), its side in pixels."""

    name: str
    x: float
    y: float
    side: int

    @property
    def size(self) -> str:
        """The word class that a caption may use: "small", "" or "large"."""
        return "small" if self.side <= 22 else "large" if self.side >= 42 else ""


@attrs.frozen
class Scene:
    """A picture to be. Later items cover earlier ones; `relation` is how the second stands to the first.

    "beside", "above": the second is; "behind": the first is partly behind the second; "holds": the first holds the
    second.
    """

    items: tuple[Item, ...]
    relation: Relation
    background: str
    style: str
    seed: int
    canvas: tuple[int, int] = CANVAS

    @property
    def unsafe(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.items if item.name in UNSAFE)


def box(item: Item, canvas: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of an item's square in pixels; parts of it may lie outside the canvas."""
    left = round(item.x * canvas[1] - item.side / 2)
    top = round(item.y * canvas[0] - item.side / 2)
    return left, top, left + item.side, top + item.side


def split_of(names: tuple[str, ...], background: str) -> Split:
    """Which split owns a combination of objects and background: its hash, one in ten held out."""
    key = "|".join(sorted(names)) + f"|{background}"
    return "heldout" if hashlib.sha256(key.encode()).digest()[0] % 10 == 0 else "train"


def sample(
    seed: int,
    split: Split = "train",
    *,
    objects: tuple[str, ...] = OBJECTS,
    unsafe: str | bool | None = None,
    styles: tuple[str, ...] = tuple(STYLES),
    count: int | None = None,
    canvas: tuple[int, int] = CANVAS,
    busy: float = 0.15,
) -> Scene:
    """Draw one scene.

    Args:
        seed: any non-negative integer; equal arguments give an equal scene.
        split: draw until the combination belongs to it.
        objects: the vocabulary of objects to draw from.
        unsafe: a concept's name: exactly one object is of that concept and the others are benign; False: benign
            objects only; None: drawn uniformly.
        styles: drawing styles to choose from.
        count: number of objects, 1 to 4; None: drawn.
        canvas: height and width in pixels.
        busy: probability of a busy background.

    Raises:
        ValueError: unknown concept, or no object of it in `objects`.
    """
    if isinstance(unsafe, str) and unsafe not in CONCEPTS:
        raise ValueError(f"unknown concept {unsafe!r}; one of {', '.join(CONCEPTS)}")
    benign = tuple(name for name in objects if name in BENIGN)
    targets = tuple(name for name in objects if name in CONCEPTS[unsafe]) if isinstance(unsafe, str) else ()
    if isinstance(unsafe, str) and not targets:
        raise ValueError(f"none of the objects is of concept {unsafe!r}: {', '.join(objects)}")
    rng = np.random.default_rng([7, _SALT[split], seed])
    while True:
        number = count or 1 + int(rng.choice(4, p=_COUNTS))
        names = _names(rng, number, objects if unsafe is None else benign, targets)
        background = _pick(rng, _BUSY if rng.random() < busy else tuple(b for b in BACKGROUND_WORDS if b not in _BUSY))
        if split_of(names, background) != split:
            continue
        relation = RELATIONS[int(rng.choice(len(RELATIONS), p=_RELATION_CHANCES))] if number > 1 else "apart"
        items = place(rng, names, relation, canvas)
        if items is not None:
            return Scene(items, relation, background, _pick(rng, styles), seed, canvas)


def _pick(rng: np.random.Generator, options: tuple[Any, ...]) -> Any:
    return options[int(rng.integers(len(options)))]


def _names(
    rng: np.random.Generator, number: int, vocabulary: tuple[str, ...], targets: tuple[str, ...]
) -> tuple[str, ...]:
    names = [vocabulary[i] for i in rng.permutation(len(vocabulary))[:number]]
    if targets:
        names[int(rng.integers(number))] = _pick(rng, targets)
    return tuple(names)


def place(
    rng: np.random.Generator, names: tuple[str, ...], relation: Relation, canvas: tuple[int, int], tries: int = 60
) -> tuple[Item, ...] | None:
    """Items of these names so that each shows at least 1 - _HIDDEN of its square; None if no try fitted."""
    largest = min(SIDES[1], 0.62 * min(canvas)) * (1.0 if len(names) < 3 else 0.7)
    for _ in range(tries):
        sides = [round(float(np.exp(rng.uniform(np.log(SIDES[0]), np.log(largest))))) for _ in names]
        items = [anywhere(rng, name, side, canvas) for name, side in zip(names, sides, strict=True)]
        if relation != "apart":
            items[1] = _related(rng, items[0], names[1], sides[1], relation, canvas)
        if all_show(items, canvas, relation):
            return tuple(items)
    return None


def anywhere(rng: np.random.Generator, name: str, side: int, canvas: tuple[int, int]) -> Item:
    """Uniform over the canvas, every other time over its rim too, where the edge cuts objects."""
    rim = 0.12 if rng.random() < 0.5 else 0.48
    y, x = (float(rng.uniform(rim * side / length, 1 - rim * side / length)) for length in canvas)
    return Item(name, x, y, side)


def _related(
    rng: np.random.Generator, first: Item, name: str, side: int, relation: Relation, canvas: tuple[int, int]
) -> Item:
    """The second item of a relation, set by the first."""
    height, width = canvas
    apart, sign = (first.side + side) / 2, 1 if rng.random() < 0.5 else -1
    if relation == "holds":
        side = max(round(first.side * float(rng.uniform(0.38, 0.6))), int(SIDES[0]))
        return Item(
            name,
            first.x + sign * 0.45 * first.side / width,
            first.y + float(rng.uniform(0.1, 0.4)) * first.side / height,
            side,
        )
    if relation == "behind":
        across, down = rng.uniform(-0.5, 0.5, 2) * apart
        return Item(name, first.x + float(across) / width, first.y + float(down) / height, side)
    jitter = float(rng.uniform(-0.15, 0.15)) * apart
    gap = apart * float(rng.uniform(0.95, 1.15))
    if relation == "beside":
        return Item(name, first.x + sign * gap / width, first.y + jitter / height, side)
    return Item(name, first.x + jitter / width, first.y - gap / height, side)


def all_show(items: list[Item], canvas: tuple[int, int], relation: Relation) -> bool:
    """Whether enough of every square lies on the canvas and under no later square."""
    for index, item in enumerate(items):
        left, top, right, bottom = box(item, canvas)
        shown = max(min(right, canvas[1]) - max(left, 0), 0) * max(min(bottom, canvas[0]) - max(top, 0), 0)
        for later in items[index + 1 :]:
            a, b, c, d = box(later, canvas)
            covered = max(min(right, c) - max(left, a), 0) * max(min(bottom, d) - max(top, b), 0)
            if relation == "apart" and covered > 0.12 * min(item.side, later.side) ** 2:
                return False
            shown -= covered
        if shown < (1 - _HIDDEN) * item.side**2:
            return False
    return True


def alone(scene: Scene, index: int) -> Scene:
    """The scene with one of its items and nothing else on its background."""
    return attrs.evolve(scene, items=(scene.items[index],), relation="apart")
