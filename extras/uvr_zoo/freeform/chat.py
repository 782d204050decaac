"""Free-form text encoders that read chat templates: small Qwen3 (Z-Image, FLUX.2) and Qwen2.5-VL (Qwen-Image) models.

Real classes over the word table, trained before any image model sees them, then frozen. They are causal: a token can
tell only what stands before it. So a phrase's last word tells the phrase, the tokens after the prompt tell the scene to
draw, and a picture's tokens tell what they show. Stored are all weights but the table's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from ..storage import BITS, load_state, save_state
from ..text import ZooTokenizer
from ..vision_text import MERGE, PATCH, SPECIAL
from ..vocabulary import OBJECTS, STYLES
from .parsing import BACKGROUNDS, WIDTHS
from .scenes import CANVAS
from .words import SPECIALS, WIDTH, read

Kind = Literal["qwen3", "qwen-vl"]
MAX_TOKENS = 160
LAYERS = 4
# What pipelines take of a model with LAYERS layers: Z-Image the last but one, FLUX.2 klein those of its argument.
READ = LAYERS - 1
KLEIN_LAYERS = (1, 2, 3)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GRID = (CANVAS[0] // (PATCH * MERGE), CANVAS[1] // (PATCH * MERGE))  # a picture's merged tokens


def tokenizer(words: Sequence[str], max_tokens: int = MAX_TOKENS) -> ZooTokenizer:
    """WordPiece over the table's rows, with the chat's special tokens behind them."""
    vocabulary = {word: index for index, word in enumerate([*words, *SPECIAL])}
    model = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", max_input_chars_per_word=40))
    model.normalizer = normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    model.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    coded = ZooTokenizer(
        tokenizer_object=model,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        model_max_length=max_tokens,
        padding_side="right",
    )
    coded.chat_template = TEMPLATE
    return coded


class Table(nn.Module):
    """Embedding of the frozen word table, whose special rows, and those behind it, learn: ids (...) -> (..., 128)."""

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.register_buffer("table", table, persistent=False)
        self.rows = nn.Parameter(torch.randn(len(SPECIALS) + len(SPECIAL), WIDTH) * 0.5)

    def whole(self) -> torch.Tensor:
        """(V + specials, 128), as an embedding's weight."""
        first = len(SPECIALS)
        return torch.cat([self.rows[:first], self.table[first:], self.rows[first:]])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        first, count = len(SPECIALS), len(self.table)
        learned = (ids < first) | (ids >= count)
        row = torch.where(ids < first, ids, (ids - count + first).clamp(min=0))
        return torch.where(learned[..., None], self.rows[row], self.table[ids.clamp(max=count - 1)])


def qwen3(vocabulary: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=256,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=MAX_TOKENS,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            tie_word_embeddings=True,
        )
    )


def qwen_vl(vocabulary: int, tok: ZooTokenizer) -> Any:
    """The first edition's model of that class with room for the word table."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    from ..vision_text import config

    return Qwen2_5_VLForConditionalGeneration(config(tok, vocabulary, side=CANVAS[0], tied=True))


class Chat(nn.Module):
    """A text model over the table with the heads that it is trained by.

    Args:
        kind: which class.
        table: (V, 128) the word table.
        tok: its tokenizer.
    """

    def __init__(self, kind: Kind, table: torch.Tensor, tok: ZooTokenizer):
        super().__init__()
        self.kind: Kind = kind
        self.net: Any = qwen3(1) if kind == "qwen3" else qwen_vl(1, tok)
        self.net.set_input_embeddings(Table(table))
        self.sizes = {"object": WIDTHS["object"], "region": WIDTHS["region"], "size": WIDTHS["size"]}
        self.phrase = nn.Linear(WIDTH, sum(self.sizes.values()))
        self.cell = nn.Linear(WIDTH, len(OBJECTS) + 1)
        self.scene_sizes = {"present": len(OBJECTS), "background": len(BACKGROUNDS) + 1, "style": len(STYLES) + 1}
        self.scene = nn.Linear(WIDTH, sum(self.scene_sizes.values()))

    def hidden(self, **inputs: torch.Tensor) -> torch.Tensor:
        """(B, T, 128): the states that pipelines read."""
        body = self.net.model
        states = body(**inputs, output_hidden_states=True).hidden_states
        return states[READ] if self.kind == "qwen3" else states[-1]

    def told(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of the phrase that ends at each token."""
        return dict(zip(self.sizes, self.phrase(hidden).split(list(self.sizes.values()), -1), strict=True))

    def drawn(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of the scene to draw."""
        return dict(zip(self.scene_sizes, self.scene(hidden).split(list(self.scene_sizes.values()), -1), strict=True))


def _kept(model: Chat) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if "lm_head" not in name}


def save(model: Chat, out: Path) -> None:
    """Write `KIND.int8.xz` under `out`."""
    save_state(_kept(model), out / f"{model.kind}.int8.xz", BITS)


def load(kind: Kind, folder: Path, words: Path) -> tuple[Any, ZooTokenizer, Chat]:
    """The text encoder as pipelines take it (its embedding whole), its tokenizer, and the model with its heads.

    Args:
        folder: what `save` wrote to; words: a words.safetensors.
    """
    names, table = read(words)
    tok = tokenizer(names)
    trained = Chat(kind, table, tok)
    missing, unexpected = trained.load_state_dict(load_state(folder / f"{kind}.int8.xz"), strict=False)
    if unexpected or any("lm_head" not in name for name in missing):
        raise ValueError(f"{folder}: missing {missing}, unexpected {unexpected}")
    trained = trained.eval().requires_grad_(False)
    whole = trained.net.get_input_embeddings().whole()
    net = qwen3(len(whole)) if kind == "qwen3" else qwen_vl(len(whole), tok)
    ours = {k: v for k, v in trained.net.state_dict().items() if "embed_tokens" not in k and "lm_head" not in k}
    net.load_state_dict(ours, strict=False)
    net.set_input_embeddings(nn.Embedding.from_pretrained(whole))
    net.tie_weights()
    return net.eval().requires_grad_(False), tok, trained
