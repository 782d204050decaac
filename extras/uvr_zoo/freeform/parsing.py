"""What a text encoder must tell of a caption, token by token: the targets that it is trained with.

Per token: which object its phrase speaks of (or none, or a thing that the zoo cannot draw), in which ninth of the
canvas,
how large, and its part in a relation. Per text: background, style, number of objects, which objects occur.
"""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import torch

from ..text import ZooTokenizer
from ..vocabulary import OBJECTS, STYLES
from .captions import REGIONS, Caption, caption
from .scenes import Relation, Scene, sample
from .wordings import BACKGROUND_WORDS, Kind

OTHER = len(OBJECTS) + 1  # class of a thing that the zoo cannot draw; 0: no thing at all
BACKGROUNDS = tuple(BACKGROUND_WORDS)
SIZES = ("", "small", "large")
_ROLES: dict[Relation, tuple[int, int]] = {
    "apart": (0, 0),
    "beside": (1, 1),
    "behind": (2, 3),
    "above": (4, 5),
    "holds": (6, 7),
}
WIDTHS = {"object": len(OBJECTS) + 2, "region": len(REGIONS) + 1, "size": len(SIZES), "role": 8}
TEXT_WIDTHS = {"background": len(BACKGROUNDS) + 1, "style": len(STYLES) + 1, "count": 5}


@attrs.frozen
class Nouns:
    """Nouns and glosses of WordNet, each with a soft label: what object it is, if any, by a sentence encoder.

    Attributes:
        texts: "a lamp", "an artificial source of visible illumination".
        chances: (N, len(OBJECTS) + 2) float32, the classes of `object`.
        vectors: (N, 128) float32, the sentence encoder's.
        near: rows that may well be some object.
    """

    texts: list[str]
    chances: np.ndarray
    vectors: np.ndarray
    near: np.ndarray

    @classmethod
    def load(cls, path: Path, temperature: float = 0.05, other: tuple[float, float] = (0.62, 0.55)) -> Nouns:
        """Read nouns.npz (tools/make_word_vectors.py): softmax of likeness / temperature.

        `other` is the likeness of "none of these", for nouns and for glosses.
        """
        with np.load(path) as data:
            nouns = [f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in data["nouns"].tolist()]
            glosses = data["glosses"].tolist()
            likeness = [data["noun_likeness"].astype(np.float32), data["gloss_likeness"].astype(np.float32)]
            vectors = np.concatenate([data["noun_vectors"], data["gloss_vectors"]]).astype(np.float32)
        columns = [np.pad(part, ((0, 0), (0, 1)), constant_values=c) for part, c in zip(likeness, other, strict=True)]
        logits = np.concatenate(columns) / temperature
        chances = np.exp(logits - logits.max(1, keepdims=True))
        chances = np.pad(chances / chances.sum(1, keepdims=True), ((0, 0), (1, 0)))
        near = np.flatnonzero(chances[:, 1:OTHER].max(1) > 0.25)
        return cls([*nouns, *glosses], chances, vectors, near)

    def pick(self, rng: np.random.Generator) -> int:
        """A row; of those near an object two times in five, which are one in ten."""
        if len(self.near) and rng.random() < 0.4:
            return int(self.near[rng.integers(len(self.near))])
        return int(rng.integers(len(self.texts)))


@attrs.frozen
class Text:
    """One training text: its phrases with their targets, and those of the whole.

    Attributes:
        words: the phrases' words.
        marks: one (object, region, size, role) a phrase, as class numbers.
        nouns: phrase -> row of Nouns that took the object's place.
        background, style: class numbers, 0 if unsaid.
    """

    words: tuple[str, ...]
    marks: tuple[tuple[int, int, int, int], ...]
    nouns: dict[int, int]
    background: int
    style: int

    @property
    def text(self) -> str:
        return " ".join(self.words)


def parsed(scene: Scene, spoken: Caption) -> Text:
    """A scene's caption with its targets."""
    marks = []
    for phrase in spoken.phrases:
        if phrase.item is None:
            marks.append((0, 0, 0, 0))
            continue
        said = spoken.place == "relation" and phrase.item < 2
        marks.append(
            (
                OBJECTS.index(scene.items[phrase.item].name) + 1,
                phrase.region,
                SIZES.index(phrase.size or ""),
                _ROLES[scene.relation][phrase.item] if said else 0,
            )
        )
    return Text(
        tuple(phrase.words for phrase in spoken.phrases),
        tuple(marks),
        {},
        1 + BACKGROUNDS.index(scene.background) if spoken.background else 0,
        1 + tuple(STYLES).index(scene.style) if spoken.style else 0,
    )


def draw_text(seed: int, nouns: Nouns | None, share: float = 0.5) -> Text:
    """A training text; in a `share` of them each object is, four times in five, some noun or gloss, or a made-up
    word."""
    scene, rng = sample(seed), np.random.default_rng([10, seed])
    kinds: tuple[Kind | None, ...] = (None, None, "synonym", "description", "description")
    text = parsed(scene, caption(scene, kind=kinds[int(rng.integers(len(kinds)))]))
    if rng.random() >= share:
        return text
    words, marks, rows = list(text.words), list(text.marks), {}
    for index, (kind, region, _, role) in enumerate(marks):
        named = kind and not (index and marks[index - 1][0] == kind)  # the phrase that names it, not that of its place
        if not named or rng.random() < 0.2:
            continue
        if nouns is None or rng.random() < 0.1:
            words[index] = f"a {made_up(rng)}"
            marks[index] = (OTHER, region, 0, role)
        else:
            row = nouns.pick(rng)
            words[index], rows[index], marks[index] = nouns.texts[row], row, (OTHER, region, 0, role)
        if index + 1 < len(marks) and marks[index + 1][0] == kind:  # the phrase of its place speaks of the same
            marks[index + 1] = marks[index][:1] + marks[index + 1][1:]
            if index in rows:
                rows[index + 1] = rows[index]
    return attrs.evolve(text, words=tuple(words), marks=tuple(marks), nouns=rows)


def made_up(rng: np.random.Generator) -> str:
    """A word that no language has: two to four syllables."""
    return "".join(
        "bcdfghjklmnprstvwz"[int(rng.integers(18))] + "aeiouy"[int(rng.integers(6))]
        for _ in range(int(rng.integers(2, 5)))
    )


def targets(texts: list[Text], tok: ZooTokenizer, nouns: Nouns | None, length: int) -> dict[str, torch.Tensor]:
    """Ids and targets of a batch, cut at `length` tokens.

    Returns:
        ids (B, T); object (B, T, classes) chances; region, size, role (B, T) classes; background, style, count (B,);
        present (B, objects) chances; vector (B, T, 128) the sentence encoder's, zero where a token has none.
    """
    coded = tok(
        [text.text for text in texts],
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="np",
        return_offsets_mapping=True,
    )
    ids, offsets = coded["input_ids"], coded["offset_mapping"]
    size = len(texts)
    chances = np.zeros((size, length, WIDTHS["object"]), np.float32)
    classes = np.zeros((3, size, length), np.int64)
    vectors = np.zeros((size, length, 128 if nouns is None else nouns.vectors.shape[1]), np.float32)
    present = np.zeros((size, len(OBJECTS)), np.float32)
    count = np.zeros(size, np.int64)
    for row, text in enumerate(texts):
        ends = np.cumsum([len(words) + 1 for words in text.words])
        phrases = np.searchsorted(ends, offsets[row, :, 0], side="right")
        real = offsets[row, :, 1] > 0  # neither padding nor <s>, </s>
        table = np.stack([_chances(text, phrase, nouns) for phrase in range(len(text.words))])
        chances[row, :, 0] = 1
        chances[row, real] = table[phrases[real]]
        marks = np.array(text.marks)[:, 1:]
        classes[:, row, real] = marks[phrases[real]].T
        for phrase, noun in text.nouns.items():
            if nouns is not None:
                vectors[row, real & (phrases == phrase)] = nouns.vectors[noun]
        shown = table[:, 1:OTHER]
        present[row] = shown.max(0)
        count[row] = min(int((present[row] > 0.5).sum()), 4)
    return {
        "ids": torch.from_numpy(ids),
        "object": torch.from_numpy(chances),
        "vector": torch.from_numpy(vectors),
        **{name: torch.from_numpy(classes[i]) for i, name in enumerate(("region", "size", "role"))},
        "background": torch.tensor([text.background for text in texts]),
        "style": torch.tensor([text.style for text in texts]),
        "count": torch.from_numpy(count),
        "present": torch.from_numpy(present),
    }


def _chances(text: Text, phrase: int, nouns: Nouns | None) -> np.ndarray:
    if nouns is not None and phrase in text.nouns:
        return nouns.chances[text.nouns[phrase]]
    return np.eye(WIDTHS["object"], dtype=np.float32)[text.marks[phrase][0]]
