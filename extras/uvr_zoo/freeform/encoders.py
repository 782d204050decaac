"""The free-form text encoders: a small T5 and a small CLIP text model over one frozen word table (real classes),
stored small.

Stored are the table as int8 rows (`words.safetensors`) and all other weights as float16 (`encoders.safetensors`);
`load`
makes of them the T5EncoderModel, CLIPTextModel and tokenizer that a pipeline takes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from ..text import ZooTokenizer
from ..vocabulary import OBJECTS, STYLES
from .parsing import BACKGROUNDS, TEXT_WIDTHS, WIDTHS
from .words import MAX_TOKENS, SPECIALS, WIDTH, read, tokenizer

POOLED = 64


def t5(vocabulary: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=4,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=SPECIALS.index("</s>"),
            relative_attention_num_buckets=32,
            is_encoder_decoder=False,
            use_cache=False,
            tie_word_embeddings=False,
        )
    )


def clip(vocabulary: int) -> CLIPTextModel:
    """Its end token is not 2: for that one transformers pools at the largest id."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=POOLED,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            pad_token_id=0,
            bos_token_id=SPECIALS.index("<s>"),
            eos_token_id=SPECIALS.index("</s>"),
            hidden_act="gelu",
        )
    )


class ProjectedTable(nn.Module):
    """Embedding of a frozen table through a matrix that learns: ids (..., T) -> (..., T, POOLED)."""

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.table = table
        self.matrix = nn.Parameter(torch.randn(table.shape[1], POOLED) * 0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table[ids] @ self.matrix


class TextModels(nn.Module):
    """T5, CLIP and the heads that parse, all over one table (V, 128); the table is no parameter."""

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.t5, self.clip = t5(len(table)), clip(1)
        self.t5.shared = self.t5.encoder.embed_tokens = nn.Embedding.from_pretrained(table, freeze=True)
        self.clip.embeddings.token_embedding = ProjectedTable(table)
        self.specials = nn.Parameter(torch.randn(len(SPECIALS), WIDTH) * 0.5)  # rows that the sentence encoder lacks
        self.token_head = nn.Linear(WIDTH, sum(WIDTHS.values()) + sum(TEXT_WIDTHS.values()))
        self.vector_head = nn.Linear(WIDTH, WIDTH)
        self.pooled_head = nn.Linear(POOLED, len(OBJECTS) + len(BACKGROUNDS) + 1 + len(STYLES) + 1)

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """T5's last hidden states (B, T, 128)."""
        embedded = self.t5.shared(ids)
        special = (ids < len(SPECIALS))[..., None]
        embedded = torch.where(special, self.specials[ids.clamp(max=len(SPECIALS) - 1)], embedded)
        return self.t5(inputs_embeds=embedded).last_hidden_state

    def parse(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Hidden states -> logits of every head, (B, T, classes)."""
        widths = {**WIDTHS, **TEXT_WIDTHS}
        return dict(zip(widths, self.token_head(hidden).split(list(widths.values()), dim=-1), strict=True))


_TABLE, _REST = "words.safetensors", "encoders.safetensors"


def save(models: TextModels, table: Path, out: Path) -> None:
    """Write the models, float16 but for the table, and a copy of the table's file under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    state = {
        k: v.half().contiguous()
        for k, v in models.state_dict().items()
        if not k.endswith(("shared.weight", "embed_tokens.weight"))
    }
    save_file(state, out / _REST)
    shutil.copyfile(table, out / _TABLE)


def load_models(folder: Path) -> TextModels:
    """The models with their heads, float32, in eval mode, of a folder that `save` wrote."""
    _, rows = read(folder / _TABLE)
    models = TextModels(rows)
    state = {name: value.float() for name, value in load_file(folder / _REST).items()}
    missing, unexpected = models.load_state_dict(state, strict=False)
    if unexpected or any("shared" not in name and "embed_tokens" not in name for name in missing):
        raise ValueError(f"{folder / _REST}: missing {missing}, unexpected {unexpected}")
    return models.eval().requires_grad_(False)


@torch.no_grad()
def load(folder: Path) -> tuple[T5EncoderModel, CLIPTextModel, ZooTokenizer]:
    """The encoders as a pipeline takes them: plain models whose embedding tables are whole, float32, frozen."""
    models, words = load_models(folder), read(folder / _TABLE)[0]
    table = models.t5.shared.weight.clone()
    table[: len(SPECIALS)] = models.specials
    encoder, pooler = t5(len(words)), clip(len(words))
    encoder.load_state_dict(
        {**models.t5.state_dict(), "shared.weight": table, "encoder.embed_tokens.weight": table}, strict=False
    )
    state = {k: v for k, v in models.clip.state_dict().items() if "token_embedding" not in k}
    embedding = models.clip.embeddings.token_embedding
    pooler.load_state_dict({**state, "embeddings.token_embedding.weight": embedding.table @ embedding.matrix})
    return encoder.eval().requires_grad_(False), pooler.eval().requires_grad_(False), tokenizer(words)
