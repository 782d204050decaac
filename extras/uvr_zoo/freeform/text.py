"""Training of the free-form text encoders, before any image model sees them; then they are frozen.

T5 learns to parse captions (`parsing`); CLIP's pooled vector learns which objects occur, background and style.
Captions of
the zoo's first edition come with what its encoders say of them, so that today's transformers understand the new ones.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import CLIPTextModel, T5EncoderModel

from .. import scenes as first
from ..text import ZooTokenizer
from ..training import Run, fit
from ..vocabulary import OBJECTS, STYLES
from .encoders import TextModels, save
from .parsing import BACKGROUNDS, TEXT_WIDTHS, Nouns, draw_text, targets
from .words import MAX_TOKENS, read, tokenizer

_SHORT = 24  # tokens of most training batches; the others have MAX_TOKENS


class FirstEdition:
    """The encoders that today's transformers know, and their captions: what the new ones shall say of them."""

    def __init__(self, shared: Path):
        self.tokenizer = ZooTokenizer.from_pretrained(shared / "tokenizer")
        self.t5 = T5EncoderModel.from_pretrained(shared / "text_encoder_2", dtype=torch.float32).eval()
        self.clip = CLIPTextModel.from_pretrained(shared / "text_encoder", dtype=torch.float32).eval()

    @torch.no_grad()
    def batch(self, seed: int, size: int) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        """Captions, T5's states (B, 32, 128), CLIP's pooled vectors (B, 64). They name objects by name alone."""
        captions = [first.sample(seed * size + i, wordings=0.0).caption for i in range(size)]
        ids = self.tokenizer(
            captions, padding="max_length", max_length=32, truncation=True, return_tensors="pt"
        ).input_ids
        return captions, self.t5(ids).last_hidden_state, self.clip(ids).pooler_output


def parse_loss(models: TextModels, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cross-entropies of every head, and the cosine to the sentence encoder's vector where a token has one."""
    hidden = models.hidden(batch["ids"])
    logits = models.parse(hidden)
    length = batch["ids"].shape[1]
    weight = 1 + 4 * (batch["object"][..., 0] < 0.5)  # most tokens speak of no object
    entropy = F.cross_entropy(logits["object"].flatten(0, 1), batch["object"].flatten(0, 1), reduction="none")
    loss = (entropy * weight.flatten()).sum() / weight.sum()
    for name in ("region", "size", "role"):
        loss = loss + F.cross_entropy(logits[name].flatten(0, 1), batch[name].flatten())
    for name in TEXT_WIDTHS:
        loss = loss + 0.5 * F.cross_entropy(logits[name].flatten(0, 1), batch[name].repeat_interleave(length))
    has = batch["vector"].abs().sum(-1) > 0
    if has.any():
        loss = (
            loss + 0.5 * (1 - F.cosine_similarity(models.vector_head(hidden[has]), batch["vector"][has], dim=-1)).mean()
        )
    pooled = models.pooled_head(models.clip(batch["ids"]).pooler_output)
    objects, background, style = pooled.split([len(OBJECTS), len(BACKGROUNDS) + 1, len(STYLES) + 1], dim=-1)
    loss = loss + 4 * F.binary_cross_entropy_with_logits(objects, batch["present"])
    loss = loss + 0.5 * F.cross_entropy(background, batch["background"]) + 0.5 * F.cross_entropy(style, batch["style"])
    speaks = batch["object"][..., 1:].sum(-1) > 0.5
    right = logits["object"].argmax(-1) == batch["object"].argmax(-1)
    return {"loss": loss, "object": right[speaks].float().mean(), "rest": right[~speaks].float().mean()}


def likeness_loss(models: TextModels, tok: ZooTokenizer, known: FirstEdition, seed: int, size: int) -> torch.Tensor:
    """Mean squared distance to the first edition's states and pooled vectors, as shares of their variance."""
    captions, states, pooled = known.batch(seed, size)
    ids = tok(
        captions, padding="max_length", max_length=states.shape[1], truncation=True, return_tensors="pt"
    ).input_ids
    loss = F.mse_loss(models.hidden(ids), states) / states.var()
    return loss + F.mse_loss(models.clip(ids).pooler_output, pooled) / pooled.var()


def train(out: Path, run: Run, table: Path, nouns: Path, shared: Path, batch_size: int = 64, lr: float = 2e-3) -> None:
    """Train both text models; save them, the heads and the tokenizer under `out` by `save`.

    Args:
        table: words.safetensors, and `nouns` nouns.npz, of tools/make_word_vectors.py.
        shared: folder of the first edition's encoders.
    """
    torch.manual_seed(0)
    words, rows = read(table)
    tok, others, known = tokenizer(words), Nouns.load(nouns), FirstEdition(shared)
    models = TextModels(rows)

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        length = MAX_TOKENS if step % 4 == 0 else _SHORT
        texts = [draw_text(step * batch_size + i, others) for i in range(batch_size)]
        figures = parse_loss(models, targets(texts, tok, others, length))
        alike = likeness_loss(models, tok, known, step, batch_size // 4)
        return {**figures, "loss": figures["loss"] + alike, "alike": alike.detach()}

    fit("text-freeform", models, loss_of, run, lr=lr)
    save(models, table, out)
