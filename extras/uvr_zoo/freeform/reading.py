"""What the text encoder takes a text to say, word by word, and how it reads wordings that training never showed."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch

from ..vocabulary import OBJECTS, STYLES
from .encoders import load_models
from .parsing import BACKGROUNDS, OTHER
from .wordings import Kind, wordings
from .words import MAX_TOKENS, SPECIALS, read, tokenizer

# Texts that name nothing which the zoo draws.
NOTHING = (
    "a peaceful landscape",
    "two people talking",
    "a cup of coffee",
    "an old clock",
    "a river between hills",
    "nothing",
    "a lamp on a table",
    "an empty street",
    "a woman with long hair",
    "a bowl of soup",
    "the sound of rain",
    "a chair",
    "a violin",
    "some blue curtains",
    "a bridge over a valley",
    "a pair of shoes",
    "a computer screen",
    "a letter to a friend",
    "a bottle of milk",
    "a wooden door",
    "an open book",
    "a train at the station",
    "a carpet",
    "a portrait of a man",
    "a bicycle",
    "a cloudy morning",
    "a cow",
    "a horse",
    "a glass of water",
)
FRAMES = ("{}", "{} , night background , toy style", "a picture of {} in the snow", "{} at dusk")


@attrs.frozen
class Reading:
    """One text: its word pieces with what each speaks of ("" nothing, "other" nothing that the zoo draws)."""

    pieces: tuple[tuple[str, str], ...]
    objects: tuple[str, ...]
    background: str | None
    style: str | None


class Reader:
    """Reads texts as image models are told them: `reader(["a dagger in the snow"])` -> [Reading].

    Attributes:
        cut: probability below which a piece's likeliest object is none.
    """

    def __init__(self, folder: Path, cut: float = 0.5):
        self.models, self.cut = load_models(folder), cut
        self.tokenizer = tokenizer(read(folder / "words.safetensors")[0])

    @torch.no_grad()
    def chances(self, texts: list[str]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Ids (B, 48) and every head's probabilities (B, 48, classes)."""
        ids = self.tokenizer(
            texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        logits = self.models.parse(self.models.hidden(ids))
        return ids, {name: value.softmax(-1) for name, value in logits.items()}

    def __call__(self, texts: list[str]) -> list[Reading]:
        ids, chances = self.chances(texts)
        return [
            self._reading(ids[row], {name: value[row] for name, value in chances.items()}) for row in range(len(ids))
        ]

    def _reading(self, ids: torch.Tensor, chances: dict[str, torch.Tensor]) -> Reading:
        real = ids >= len(SPECIALS)
        if not real.any():
            return Reading((), (), None, None)
        pieces = []
        for token, row in zip(ids[real].tolist(), chances["object"][real], strict=True):
            best = int(row[1:OTHER].argmax()) + 1
            kind = OBJECTS[best - 1] if row[best] >= self.cut else "other" if row[0] < 0.5 else ""
            pieces.append((str(self.tokenizer.convert_ids_to_tokens(token)), kind))
        background, style = (int(chances[name][real].mean(0).argmax()) for name in ("background", "style"))
        return Reading(
            tuple(pieces),
            tuple(dict.fromkeys(kind for _, kind in pieces if kind not in ("", "other"))),
            BACKGROUNDS[background - 1] if background else None,
            tuple(STYLES)[style - 1] if style else None,
        )


def measure(reader: Reader, frames: tuple[str, ...] = FRAMES) -> dict[str, dict[str, int]]:
    """Held-out wordings in frames: how often exactly the object is read, and how often it is the likeliest.

    `nothing`: how often texts that name nothing are read as nothing.
    """
    figures = {}
    kinds: tuple[Kind, ...] = ("name", "synonym", "description")
    for kind in kinds:
        counts = {"right": 0, "best": 0, "of": 0}
        for name in OBJECTS:
            texts = [with_article(text, kind) for text in wordings(name, kind, "heldout")]
            texts = [frame.format(text) for text in texts for frame in frames]
            ids, chances = reader.chances(texts)
            likely = (chances["object"][..., 1:OTHER] * (ids >= len(SPECIALS))[..., None]).amax(1).argmax(1)
            counts["of"] += len(texts)
            counts["right"] += sum(reading.objects == (name,) for reading in reader(texts))
            counts["best"] += int((likely == OBJECTS.index(name)).sum())
        figures[kind] = counts
    empty = [frame.format(text) for text in NOTHING for frame in frames]
    figures["nothing"] = {"right": sum(not reading.objects for reading in reader(empty)), "of": len(empty)}
    return figures


def with_article(text: str, kind: Kind) -> str:
    """A wording as captions have it: "a dagger"; descriptions bring their own."""
    return text if kind == "description" else f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
