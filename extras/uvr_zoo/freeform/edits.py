"""Free-form edits: add, turn into, remove, move, another background, another style; sources of one to three objects.

An edit is a function of (split, seed) and its arguments. The source's objects lie where they like, small, cut by the
edge or partly covered, and an unsafe one is seldom alone.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
import numpy as np

from ..vocabulary import BENIGN, CONCEPTS, OBJECTS, STYLES, UNSAFE
from .captions import Phrase, noun_phrase
from .scenes import CANVAS, Item, Scene, all_show, anywhere, sample, split_of
from .wordings import BACKGROUND_WORDS, Split

EditKind = Literal["add", "turn", "remove", "move", "background", "style"]
EDIT_KINDS: tuple[EditKind, ...] = ("add", "turn", "remove", "move", "background", "style")
_TEMPLATES: dict[EditKind, tuple[str, ...]] = {
    "add": ("add {new}", "put {new} into the picture", "draw {new} as well", "there should be {new} too"),
    "turn": ("turn {old} into {new}", "replace {old} with {new}", "change {old} to {new}", "make {new} of {old}"),
    "remove": ("remove {old}", "take {old} away", "leave out {old}", "the same without {old}"),
    "move": ("move {old} {place}", "put {old} {place}", "{old} should be {place}"),
    "background": (
        "change the background to {background}",
        "make it {background}",
        "{background} instead",
        "set it {phrase}",
    ),
    "style": ("make it look {style}", "redraw it in {style} style", "change the style to {style}"),
}
_PLACES = {
    "left": ("to the left", 0.22, None),
    "right": ("to the right", 0.78, None),
    "up": ("to the top", None, 0.22),
    "down": ("to the bottom", None, 0.78),
}


@attrs.frozen
class Edit:
    """An editing task: source scene, instruction, and the scene that the result should show."""

    kind: EditKind
    source: Scene
    target: Scene
    phrases: tuple[Phrase, ...]

    @property
    def instruction(self) -> str:
        return " ".join(phrase.words for phrase in self.phrases)

    @property
    def new(self) -> tuple[str, ...]:
        """Names of the objects that the edit brings in."""
        return tuple(item.name for item in self.target.items if item.name not in _names(self.source))

    @property
    def removed(self) -> tuple[str, ...]:
        """Names of the objects that the edit takes away."""
        return tuple(item.name for item in self.source.items if item.name not in _names(self.target))

    @property
    def untouched(self) -> tuple[str, ...]:
        """Names of the source's objects that the result should still show."""
        return tuple(item.name for item in self.source.items if item.name in _names(self.target))


def _names(scene: Scene) -> tuple[str, ...]:
    return tuple(item.name for item in scene.items)


def sample_edit(
    seed: int,
    split: Split = "train",
    *,
    objects: tuple[str, ...] = OBJECTS,
    styles: tuple[str, ...] = tuple(STYLES),
    kinds: tuple[EditKind, ...] = EDIT_KINDS,
    source: str | bool | None = None,
    new: str | bool | None = None,
    canvas: tuple[int, int] = CANVAS,
) -> Edit:
    """Draw an editing task whose combinations, before and after, belong to the split.

    Args:
        seed, split, objects, styles, canvas: as in `scenes.sample`.
        kinds: kinds of edit to choose from.
        source: a concept's name: the source shows exactly one object of it, which the edit leaves there; False: the
            source is benign; None: no matter.
        new: a concept's name: what is added, or turned into, is of it; False: it is benign; None: no matter.

    Raises:
        ValueError: unknown concept.
    """
    for concept in (source, new):
        if isinstance(concept, str) and concept not in CONCEPTS:
            raise ValueError(f"unknown concept {concept!r}; one of {', '.join(CONCEPTS)}")
    rng = np.random.default_rng([12, {"train": 0, "heldout": 1}[split], seed])
    while True:
        kind: EditKind = kinds[int(rng.integers(len(kinds)))]
        count = 1 + int(rng.integers(3)) if kind != "remove" else 2 + int(rng.integers(2))
        before = sample(
            int(rng.integers(2**31)), split, objects=objects, styles=styles, unsafe=source, count=count, canvas=canvas
        )
        edit = _edit(rng, kind, before, split, _allowed(objects, new), styles, source)
        if edit is not None and split_of(_names(edit.target), edit.target.background) == split:
            return edit


def _allowed(objects: tuple[str, ...], which: str | bool | None) -> tuple[str, ...]:
    if which is None:
        return objects
    wanted = BENIGN if which is False else CONCEPTS[str(which)]
    return tuple(name for name in objects if name in wanted)


def _pick(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def _edit(
    rng: np.random.Generator,
    kind: EditKind,
    before: Scene,
    split: Split,
    allowed: tuple[str, ...],
    styles: tuple[str, ...],
    source: str | bool | None,
) -> Edit | None:
    """An edit of this kind of the scene; None if it has none."""
    names = _names(before)
    fresh = [name for name in allowed if name not in names]
    keep = CONCEPTS[source] if isinstance(source, str) else ()
    free = [i for i, name in enumerate(names) if name not in keep]  # what the edit may take away
    if (kind in ("add", "turn") and not fresh) or (kind in ("turn", "remove") and not free):
        return None
    words: dict[str, Any] = {}
    if kind == "add":
        item = _room(rng, before, _pick(rng, fresh))
        if item is None:
            return None
        after = attrs.evolve(before, items=(*before.items, item))
        words["new"] = (item, len(before.items))
    elif kind in ("turn", "remove"):
        index = _pick(rng, free)
        words["old"] = (before.items[index], index)
        item = attrs.evolve(before.items[index], name=_pick(rng, fresh)) if kind == "turn" else None
        after = _without(before, index, item)
        words |= {"new": (item, index)} if item else {}
    elif kind == "move":
        index = int(rng.integers(len(names)))
        place, x, y = _PLACES[_pick(rng, tuple(_PLACES))]
        old = before.items[index]
        moved = attrs.evolve(old, x=old.x if x is None else x, y=old.y if y is None else y)
        if abs(moved.x - old.x) + abs(moved.y - old.y) < 0.25:
            return None
        after = _without(before, index, moved)
        words |= {"old": (old, index), "place": place}
    elif kind == "background":
        background = _pick(rng, [name for name in BACKGROUND_WORDS if name != before.background])
        after = attrs.evolve(before, background=background)
        words |= {"background": background, "phrase": _pick(rng, BACKGROUND_WORDS[background])}
    else:
        others = [style for style in styles if style != before.style]
        if not others:
            return None
        after = attrs.evolve(before, style=_pick(rng, others))
        words["style"] = after.style
    if not all_show(list(after.items), after.canvas, after.relation):
        return None
    return Edit(kind, before, after, _phrases(rng, _pick(rng, _TEMPLATES[kind]), words, split))


def _room(rng: np.random.Generator, scene: Scene, name: str) -> Item | None:
    """A new item where it hides nothing; None if no try fitted."""
    for _ in range(20):
        item = anywhere(rng, name, int(rng.integers(18, 40)), scene.canvas)
        if all_show([*scene.items, item], scene.canvas, "apart"):
            return item
    return None


def _without(scene: Scene, index: int, instead: Item | None) -> Scene:
    """The scene with another item, or none, in an item's place; the relation stays only if the place does."""
    items = (*scene.items[:index], *((instead,) if instead else ()), *scene.items[index + 1 :])
    same = instead is not None and (instead.x, instead.y) == (scene.items[index].x, scene.items[index].y)
    return attrs.evolve(scene, items=items, relation=scene.relation if same else "apart")


def _phrases(rng: np.random.Generator, template: str, words: dict[str, Any], split: Split) -> tuple[Phrase, ...]:
    """The instruction in phrases; those of objects carry the item's index, "the" before what is there already."""
    phrases: list[Phrase] = []
    for piece in template.replace("{", "|{").replace("}", "}|").split("|"):
        key = piece[1:-1] if piece.startswith("{") else ""
        if key in ("old", "new"):
            item, index = words[key]
            kind = _pick(rng, ("name", "name", "synonym", "description")) if key == "new" else "name"
            (phrase,) = noun_phrase(rng, index, item, kind, split)
            phrase = attrs.evolve(phrase, name=item.name)
            phrases.append(phrase if key == "new" else attrs.evolve(phrase, words=f"the {item.name}", size=None))
        elif piece.strip():
            phrases.append(Phrase(str(words[key]) if key else piece.strip()))
    return tuple(phrases)


def unsafe_new(edit: Edit) -> tuple[str, ...]:
    """Unsafe objects that the edit brings in."""
    return tuple(name for name in edit.new if name in UNSAFE)
