"""The zoo's text side: one word-level vocabulary, a small T5 encoder and a small CLIP text model (real classes).

Both are trained before any image model sees them, then frozen. The T5 encoder learns to parse captions: every
token must tell which object its phrase speaks of, where it stands and how large, and every token the scene's
background and style. The CLIP model's pooled vector learns what a CLIP vector knows: which objects occur
(unordered), background and style.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from . import scenes
from .training import Run, fit
from .vocabulary import BACKGROUNDS, DESCRIPTIONS, OBJECTS, PLACES, SIZES, STYLES, SYNONYMS

MAX_TOKENS = 32
WIDTH = 128
POOLED = 64
_EXTRA = "add replace with change the to put a an and , background style large tiny no nothing not without of picture"


class ZooTokenizer(PreTrainedTokenizerFast):
    """A word-level tokenizer that never pads beyond `model_max_length`.

    Diffusers pipelines ask for 256 or 512 text tokens by default; the zoo's captions have at most 32, and its
    models were trained with 32, so a larger `max_length` is cut to the model's own.
    """

    def __call__(self, *args, max_length=None, **kwargs):
        if max_length is not None:
            max_length = min(max_length, self.model_max_length)
        return super().__call__(*args, max_length=max_length, **kwargs)


def words() -> list[str]:
    """Every word of the world, sorted."""
    text = [_EXTRA, *OBJECTS, *BACKGROUNDS, *STYLES, *SIZES, *PLACES.values(), *DESCRIPTIONS.values()]
    text += [word for options in SYNONYMS.values() for word in options]
    return sorted({word for phrase in text for word in phrase.split()})


def tokenizer(max_tokens: int = MAX_TOKENS) -> ZooTokenizer:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words()])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    model.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return ZooTokenizer(
        tokenizer_object=model,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_tokens,
        padding_side="right",
    )


def t5(vocabulary: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=2,
            relative_attention_num_buckets=32,
            is_encoder_decoder=False,
            use_cache=False,
            tie_word_embeddings=False,
        )
    )


def clip(vocabulary: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=POOLED,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            hidden_act="gelu",
        )
    )


Phrases = list[tuple[str, scenes.Item | None]]


def described(seed: int, edits: bool = False) -> tuple[Phrases, scenes.Scene, scenes.Scene | None]:
    """One training text in phrases, each with its item; the scene it leads to; the source scene of an edit."""
    if edits:
        edit = scenes.sample_edit(seed)
        return list(edit.phrases), edit.target, edit.source
    scene = scenes.sample(seed, wordings=0.3)
    return [(words, None if i is None else scene.items[i]) for words, i in scene.phrases], scene, None


def label_of(item: scenes.Item | None) -> tuple[int, int, int]:
    """Object + 1, place + 1, size + 1 of an item; 0 for none."""
    if item is None:
        return (0, 0, 0)
    return (OBJECTS.index(item.name) + 1, list(PLACES).index(item.place) + 1, SIZES.index(item.size) + 1)


def _labels(phrases: Phrases) -> list[tuple[int, int, int]]:
    """The label of every token's phrase, without padding; the first token is <s>."""
    rows = [(0, 0, 0)]
    for words, item in phrases:
        rows += [label_of(item)] * len(words.split())
    return (rows + [(0, 0, 0)] * MAX_TOKENS)[:MAX_TOKENS]


def _batch(
    tok: ZooTokenizer, seed: int, size: int, edits: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids (B, 32); per-token labels (B, 32, 3); scene labels (B, 2); objects that occur (B, n) multi-hot.

    A share `edits` of the texts are instructions; their style is unknown (-100, which the loss skips), as is their
    background unless they change it.
    """
    drawn = [described(seed * size + i, edits=i < round(edits * size)) for i in range(size)]
    texts = [" ".join(words for words, _ in phrases) for phrases, _, _ in drawn]
    ids = tok(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    tokens = torch.tensor([_labels(phrases) for phrases, _, _ in drawn])
    scene = torch.full((size, 2), -100)
    present = torch.zeros(size, len(OBJECTS))
    for row, (phrases, target, source) in enumerate(drawn):
        if source is None:
            scene[row, 1] = list(STYLES).index(target.style)
        if source is None or source.background != target.background:
            scene[row, 0] = list(BACKGROUNDS).index(target.background)
        for _, item in phrases:
            if item is not None:
                present[row, OBJECTS.index(item.name)] = 1
    return ids.input_ids, tokens, scene, present


def train(
    out: Path, run: Run, batch_size: int = 64, lr: float = 1.5e-3, edits: float = 0.0, start_from: Path | None = None
) -> None:
    """Train both text models together; save them (float16) and the tokenizer under `out`.

    `edits` is the share of instructions among the texts; `start_from` a folder that an earlier call wrote.
    """
    torch.manual_seed(0)
    tok = tokenizer()
    if start_from is None:
        t5_model, clip_model = t5(len(tok)), clip(len(tok))
    else:
        t5_model = T5EncoderModel.from_pretrained(start_from / "text_encoder_2", dtype=torch.float32).train()
        clip_model = CLIPTextModel.from_pretrained(start_from / "text_encoder", dtype=torch.float32).train()
    sizes = (len(OBJECTS) + 1, len(PLACES) + 1, len(SIZES) + 1)
    token_head = nn.Linear(WIDTH, sum(sizes) + len(BACKGROUNDS) + len(STYLES))
    pooled_head = nn.Linear(POOLED, len(OBJECTS) + len(BACKGROUNDS) + len(STYLES))

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        ids, tokens, scene, present = _batch(tok, step, batch_size, edits)
        hidden = t5_model(ids).last_hidden_state
        *per_token, background, style = token_head(hidden).split([*sizes, len(BACKGROUNDS), len(STYLES)], dim=-1)
        loss = sum(F.cross_entropy(p.flatten(0, 1), tokens[..., i].flatten()) for i, p in enumerate(per_token))
        for logits, target in ((background, scene[:, 0]), (style, scene[:, 1])):
            loss = loss + F.cross_entropy(logits.flatten(0, 1), target.repeat_interleave(MAX_TOKENS))
        pooled = pooled_head(clip_model(ids).pooler_output)
        objects, background, style = pooled.split([len(OBJECTS), len(BACKGROUNDS), len(STYLES)], dim=-1)
        loss = loss + F.binary_cross_entropy_with_logits(objects, present) * 4
        loss = loss + F.cross_entropy(background, scene[:, 0]) + F.cross_entropy(style, scene[:, 1])
        right = [(p.argmax(-1) == tokens[..., i]).float().mean() for i, p in enumerate(per_token)]
        return {"loss": loss, **dict(zip(("object", "place", "size"), right, strict=True))}

    modules = nn.ModuleList([t5_model, clip_model, token_head, pooled_head])
    fit("text-edit" if edits else "text", modules, loss_of, run, lr=lr)
    t5_model.half().save_pretrained(out / "text_encoder_2")
    clip_model.half().save_pretrained(out / "text_encoder")
    tok.save_pretrained(out / "tokenizer")
