"""Free English for a scene: mostly without a place, else vague, by relation or exact; 1 to 40 words, many wordings.

A caption is a function of (scene, seed): the same scene has as many captions as there are seeds. It comes in phrases,
each
with what it speaks of, so that a text encoder can be trained to parse it.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
import numpy as np

from .scenes import Item, Scene
from .wordings import BACKGROUND_WORDS, SIZE_WORDS, STYLE_WORDS, Kind, Split, wordings

PlaceKind = Literal["none", "vague", "relation", "exact"]
_PLACE_CHANCES = {"none": 0.8, "vague": 0.08, "relation": 0.0, "exact": 0.12}
_RELATED_CHANCES = {"none": 0.6, "vague": 0.04, "relation": 0.3, "exact": 0.06}  # where one thing stands to another
_COLUMNS, _ROWS = ("left", "middle", "right"), ("top", "middle", "bottom")
REGIONS = tuple(f"{row} {column}" for row in _ROWS for column in _COLUMNS)
_EXACT = {
    "middle left": ("on the left", "on the left side", "at the left"),
    "middle right": ("on the right", "on the right side", "at the right"),
    "top middle": ("at the top", "on top", "in the upper part"),
    "bottom middle": ("at the bottom", "in the lower part", "down below"),
    "middle middle": ("in the middle", "in the centre", "in the center"),
}
_CORNER = ("in the {} {} corner", "in the {} {}", "at the {} {}")
_OPENINGS = ("a picture of", "an image of", "a drawing of", "there is", "this picture shows", "here is", "a scene with",
             "draw")  # fmt: skip
_CLOSINGS = (
    "and nothing else",
    "drawn with care",
    "for a picture book",
    "seen from the side",
    "as an emoji",
    "with no text",
    "simple and clear",
)
_JOINS = {
    "apart": ("and", "and", "and", "with", ",", "together with"),
    "beside": ("next to", "beside", "near", "by the side of", "close to"),
    "behind": ("behind", "partly hidden by", "in back of"),
    "above": ("below", "under", "beneath"),  # first below second
    "holds": ("holding", "with", "carrying", "that has"),
}
_BACKWARDS = {
    "behind": ("in front of", "covering"), "above": ("above", "over", "on top of"), "beside": ("next to", "beside"),
    "holds": ("held by", "carried by"),
}  # fmt: skip


@attrs.frozen
class Phrase:
    """Words of a caption and what they speak of.

    Attributes:
        words: as they stand in the caption.
        item: index of the scene's item; None: the whole scene, or grammar.
        region: index + 1 of REGIONS where the phrase says the item's place exactly; 0: it does not.
        size: the word class of the size that the phrase says; None: it says none.
        name: of an instruction: the object that the phrase calls by its name, or by another.
    """

    words: str
    item: int | None = None
    region: int = 0
    size: str | None = None
    name: str | None = None


@attrs.frozen
class Caption:
    """A caption in phrases.

    Attributes:
        place: what it says of places.
        kinds: how each of the scene's items is called.
        background, style: whether it says so.
    """

    phrases: tuple[Phrase, ...]
    place: PlaceKind
    kinds: tuple[Kind, ...]
    background: bool
    style: bool

    @property
    def text(self) -> str:
        return " ".join(phrase.words for phrase in self.phrases)


def caption(
    scene: Scene,
    seed: int | None = None,
    *,
    place: PlaceKind | None = None,
    kind: Kind | None = None,
    split: Split = "train",
    plain: float = 0.25,
    style: float = 0.55,
) -> Caption:
    """Draw a caption of a scene.

    Args:
        scene: what it speaks of; it names every object.
        seed: None: the scene's own.
        place: what it says of places; None: drawn, three times in four nothing. A single object has no relation.
        kind: how objects are called; None: drawn (a name every other time).
        split: whose wordings it uses.
        plain: probability of "a cat and a knife , night background", with neither opening nor closing.
        style: probability that it says the style.
    """
    rng = np.random.default_rng([9, scene.seed if seed is None else seed])
    chances = _PLACE_CHANCES if scene.relation == "apart" else _RELATED_CHANCES
    said_of_place = place or _draw(rng, tuple(chances), tuple(chances.values()))
    if said_of_place == "relation" and scene.relation == "apart":
        said_of_place = "none"
    kinds = tuple(kind or _draw(rng, ("name", "synonym", "description"), (0.5, 0.33, 0.17)) for _ in scene.items)
    nouns = [
        noun_phrase(rng, index, item, k, split) for index, (item, k) in enumerate(zip(scene.items, kinds, strict=True))
    ]
    if said_of_place == "exact":
        nouns = [
            (*noun, _exact(rng, index, item)) for index, (noun, item) in enumerate(zip(nouns, scene.items, strict=True))
        ]
    elif said_of_place == "vague":
        nouns = [
            (*noun, _vague(rng, index, item)) for index, (noun, item) in enumerate(zip(nouns, scene.items, strict=True))
        ]
    body = _joined(rng, scene, nouns, said_of_place)
    phrases, said, styled = _framed(rng, scene, body, plain, style)
    return Caption(tuple(phrases), said_of_place, kinds, said, styled)


def _draw(rng: np.random.Generator, options: tuple[Any, ...], chances: tuple[float, ...]) -> Any:
    return options[int(np.searchsorted(np.cumsum(chances), rng.random() * sum(chances)))]


def _pick(rng: np.random.Generator, options: tuple[Any, ...]) -> Any:
    return options[int(rng.integers(len(options)))]


def noun_phrase(rng: np.random.Generator, index: int, item: Item, kind: Kind, split: Split) -> tuple[Phrase, ...]:
    """An object's phrase; its size is said now and then, of what is small or large."""
    words = _pick(rng, wordings(item.name, kind, split))
    if kind == "description":
        return (Phrase(words, index),)
    size = _pick(rng, SIZE_WORDS[item.size]) if rng.random() < 0.3 else ""
    text = " ".join(filter(None, (size, words)))
    article = "an" if text[0] in "aeiou" else "a"
    draw = rng.random()
    start = "" if draw < 0.12 else "the " if draw < 0.2 else "one " if draw < 0.24 else f"{article} "
    return (Phrase(start + text, index, 0, item.size if size else None),)


def region(item: Item) -> str:
    """Which ninth of the canvas an item's centre lies in, as in REGIONS."""
    row, column = (min(max(int(share * 3), 0), 2) for share in (item.y, item.x))
    return f"{_ROWS[row]} {_COLUMNS[column]}"


def _exact(rng: np.random.Generator, index: int, item: Item) -> Phrase:
    where = region(item)
    row, column = where.split()
    if where in _EXACT:
        words = _pick(rng, _EXACT[where])
    else:
        row = row if rng.random() < 0.5 else {"top": "upper", "bottom": "lower"}[row]
        words = _pick(rng, _CORNER).format(row, column)
    return Phrase(words, index, REGIONS.index(where) + 1)


def _vague(rng: np.random.Generator, index: int, item: Item) -> Phrase:
    row, column = region(item).split()
    if row == column == "middle":
        options: tuple[str, ...] = ("somewhere in the middle", "not at the edge")
    elif "middle" in (row, column):
        options = ("near the edge", "on one side", "off the centre", "to one side")
    else:
        options = ("in a corner", "in one of the corners", "near the edge", "off the centre")
    return Phrase(_pick(rng, options), index)


def _joined(rng: np.random.Generator, scene: Scene, nouns: list[tuple[Phrase, ...]], place: PlaceKind) -> list[Phrase]:
    """Nouns in some order with what joins them; the first two in the order of their relation if it is said."""
    order = list(range(len(nouns)))
    backwards = rng.random() < 0.5
    if place == "relation" and len(order) > 1:
        order[:2] = [1, 0] if backwards else [0, 1]
    else:
        order = [int(i) for i in rng.permutation(len(nouns))]
    phrases = list(nouns[order[0]])
    for position, index in enumerate(order[1:]):
        if position == 0 and place == "relation":
            join = _pick(rng, (_BACKWARDS if backwards else _JOINS)[scene.relation])
        else:
            join = _pick(rng, _JOINS["apart"])
        phrases += [Phrase(join), *nouns[index]]
    return phrases


def _framed(
    rng: np.random.Generator, scene: Scene, body: list[Phrase], plain: float, style: float
) -> tuple[list[Phrase], bool, bool]:
    """The body with opening, background, style and closing; whether background and style are said."""
    simple, said, styled = rng.random() < plain, rng.random() < 0.65, rng.random() < style
    phrases = list(body)
    if not simple and rng.random() < 0.35:
        phrases.insert(0, Phrase(_pick(rng, _OPENINGS)))
    tail = []
    if said:
        words = f"{scene.background} background" if simple else _pick(rng, BACKGROUND_WORDS[scene.background])
        if not simple and rng.random() < 0.12:
            phrases = [Phrase(words), Phrase(","), *phrases]
        else:
            tail += [*([Phrase(",")] if simple or rng.random() < 0.4 else []), Phrase(words)]
    if styled:
        tail += [Phrase(","), Phrase(f"{scene.style} style" if simple else _pick(rng, STYLE_WORDS[scene.style]))]
    if not simple and rng.random() < 0.12:
        tail += [Phrase(","), Phrase(_pick(rng, _CLOSINGS))]
    return phrases + tail, said, styled
