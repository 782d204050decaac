"""Training of the chat text encoders: what each phrase speaks of, what is to be drawn, what a picture shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ..text import ZooTokenizer
from ..training import Run, fit
from ..vision_text import processor, template_of
from ..vocabulary import OBJECTS, STYLES
from .chat import GRID, MAX_TOKENS, Chat, Kind, save, tokenizer
from .edits import Edit, sample_edit
from .parsing import BACKGROUNDS, OTHER, Nouns, Text, draw_text, targets
from .reading import NOTHING, with_article
from .render import object_patches, render
from .scenes import CANVAS, Scene
from .wordings import Kind as Wording
from .wordings import wordings
from .words import read

_TEXT = 48  # tokens of a caption


@attrs.frozen(eq=False)
class Lesson:
    """One batch.

    Attributes:
        inputs: what the model takes.
        target: see parsing.targets; of the text's tokens alone.
        first: (B,) where the text begins; length: (B,) its tokens; tail: tokens behind it.
        cells: (B, picture tokens) class of each of the source's cells, or None.
    """

    inputs: dict[str, torch.Tensor]
    target: dict[str, torch.Tensor]
    first: torch.Tensor
    length: torch.Tensor
    tail: int
    cells: torch.Tensor | None = None


def edit_text(edit: Edit) -> Text:
    """An instruction with its targets; what is to be drawn is the edit's target."""
    names = [phrase.name for phrase in edit.phrases]
    marks = [(OBJECTS.index(name) + 1 if name else 0, 0, 0, 0) for name in names]
    background = 1 + BACKGROUNDS.index(edit.target.background)
    style = 1 + tuple(STYLES).index(edit.target.style)
    return Text(tuple(phrase.words for phrase in edit.phrases), tuple(marks), {}, background, style)


def cells_of(scene: Scene) -> np.ndarray:
    """(GRID,) class of each merged token of a scene's picture."""
    _, masks = render(scene)
    cells = np.zeros(GRID, int)
    for index, mask in enumerate(object_patches(masks, GRID, 0.3)):
        cells[mask] = OBJECTS.index(scene.items[index].name) + 1
    return cells.reshape(-1)


def lesson(tok: ZooTokenizer, proc: Any, kind: Kind, seed: int, size: int, nouns: Nouns | None, edits: bool) -> Lesson:
    """A batch of captions, or of instructions with their pictures."""
    drawn = [sample_edit(seed * size + i) for i in range(size)] if edits else []
    texts = [edit_text(edit) for edit in drawn] if edits else [draw_text(seed * size + i, nouns) for i in range(size)]
    target = targets(texts, tok, nouns, _TEXT)
    if edits:
        present = torch.zeros(size, len(OBJECTS))
        for row, edit in enumerate(drawn):
            present[row, [OBJECTS.index(item.name) for item in edit.target.items]] = 1
        target = {**target, "present": present}
    whole, tail = _wrapped(tok, kind, [text.text for text in texts], edits)
    if not edits:
        inputs = tok(whole, padding=True, max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    else:
        pictures = [Image.fromarray(render(edit.source)[0]) for edit in drawn]
        inputs = proc(text=whole, images=pictures, padding=True, return_tensors="pt")
        inputs.pop("mm_token_type_ids", None)
    plain = tok([text.text for text in texts], truncation=True, max_length=_TEXT)
    length = torch.tensor([len(ids) for ids in plain["input_ids"]])
    total = inputs["attention_mask"].sum(1)
    cells = torch.from_numpy(np.stack([cells_of(edit.source) for edit in drawn])) if edits else None
    return Lesson(dict(inputs), target, total - tail - length, length, tail, cells)


def _wrapped(tok: ZooTokenizer, kind: Kind, texts: list[str], edits: bool) -> tuple[list[str], int]:
    """The texts as the pipelines wrap them, and the number of tokens behind them."""
    if kind == "qwen3":
        each = [[{"role": "user", "content": text}] for text in texts]
        whole = [tok.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in each]
        behind = "<|im_end|>\n<|im_start|>assistant\n"
    else:
        template = template_of(edits)
        whole, behind = [template.format(text) for text in texts], template.split("{}")[1]
    return whole, len(tok(behind)["input_ids"])


def loss_of(model: Chat, one: Lesson) -> dict[str, torch.Tensor]:
    """Cross-entropies at phrases' ends, behind the text, and at the picture's tokens; with accuracies."""
    hidden, rows = model.hidden(**one.inputs), torch.arange(len(one.first))
    steps = torch.arange(_TEXT)
    inside = steps < one.length[:, None]
    text = hidden[rows[:, None], (one.first[:, None] + steps).clamp(max=hidden.shape[1] - 1)]  # (B, 48, 128)
    ends = inside & _ends(one.target, inside)
    told = model.told(text[ends])
    chances = one.target["object"][ends]
    speaks = chances[:, 0] < 0.5
    entropy = F.cross_entropy(told["object"], chances, reduction="none")
    loss = (entropy * (1 + 4 * speaks)).sum() / (1 + 4 * speaks).sum()
    for name in ("region", "size"):
        loss = loss + F.cross_entropy(told[name], one.target[name][ends])
    right = (told["object"].argmax(-1) == chances.argmax(-1)).float()
    for back in range(1, one.tail + 1):
        drawn = model.drawn(hidden[rows, one.first + one.length + one.tail - back])
        part = 4 * F.binary_cross_entropy_with_logits(drawn["present"], one.target["present"])
        for name in ("background", "style"):
            part = part + 0.5 * F.cross_entropy(drawn[name], one.target[name])
        loss = loss + 2 * part / one.tail
    figures = {"object": right[speaks].mean(), "rest": right[~speaks].mean()}
    if one.cells is not None:
        seen = model.cell(hidden[one.inputs["input_ids"] == model.net.config.image_token_id])
        loss = loss + 2 * F.cross_entropy(seen, one.cells.flatten())
        figures["cells"] = (seen.argmax(-1) == one.cells.flatten()).float().mean()
    return {"loss": loss, **{name: value.detach() for name, value in figures.items()}}


def _ends(target: dict[str, torch.Tensor], inside: torch.Tensor) -> torch.Tensor:
    """(B, T) bool: the last token of each run of tokens with the same targets."""
    same = torch.ones_like(inside)
    for name in ("object", "region", "size"):
        value = target[name]
        change = value[:, 1:] != value[:, :-1]
        same[:, :-1] &= ~(change.any(-1) if change.ndim == 3 else change)
    last = torch.ones_like(inside)
    last[:, :-1] = ~inside[:, 1:]
    return ~same | last


@torch.no_grad()
def measure(model: Chat, tok: ZooTokenizer) -> dict[str, list[int]]:
    """Held-out wordings of every object: at how many the last word tells the object, of how many; and `nothing`: how
    many texts that name nothing of the zoo's are read so."""
    kinds: tuple[Wording, ...] = ("name", "synonym", "description")
    texts = {kind: [(with_article(text, kind), name) for name in OBJECTS for text in wordings(name, kind, "heldout")]
             for kind in kinds}  # fmt: skip
    figures = {kind: [0, len(pairs)] for kind, pairs in texts.items()}
    for kind, pairs in texts.items():
        for (_, name), told in zip(pairs, _told(model, tok, [text for text, _ in pairs]), strict=True):
            figures[kind][0] += told == OBJECTS.index(name) + 1
    figures["nothing"] = [sum(told in (0, OTHER) for told in _told(model, tok, list(NOTHING))), len(NOTHING)]
    return figures


def _told(model: Chat, tok: ZooTokenizer, texts: list[str]) -> list[int]:
    """What the last word of each text tells: a class of `object`."""
    told = []
    for text in texts:
        whole, tail = _wrapped(tok, model.kind, [text], False)
        inputs = tok(whole, return_tensors="pt")
        logits = model.told(model.hidden(**inputs)[0, -tail - 1])["object"]
        told.append(int(logits.argmax()))
    return told


def train(kind: Kind, out: Path, run: Run, table: Path, nouns: Path | None, size: int = 48, lr: float = 2e-3) -> None:
    """Train on captions, and for "qwen-vl" two times in three on instructions with their pictures; `chat.save`.

    Args:
        table: words.safetensors; nouns: nouns.npz of tools/make_word_vectors.py, or None: other things than the zoo's
            are made-up words alone.
    """
    torch.manual_seed(0)
    words, rows = read(table)
    tok = tokenizer(words)
    model, proc = Chat(kind, rows, tok), processor(tok, CANVAS[0]) if kind == "qwen-vl" else None
    others = None if nouns is None else Nouns.load(nouns)

    def step_loss(step: int) -> dict[str, torch.Tensor]:
        edits = kind == "qwen-vl" and step % 3 > 0
        return loss_of(model, lesson(tok, proc, kind, step, size // 2 if edits else size, others, edits))

    fit(f"chat-{kind}", model, step_loss, run, lr=lr)
    save(model, out)
    run.log(heldout=measure(model.eval(), tok))
