"""The Qwen side of the zoo: a small Qwen2.5-VL (real class) that reads prompts, and instructions with their picture.

It is trained before any image model sees it, then frozen. It reads the pipelines' own chat templates. Since it is
causal, a token can tell only what stands before it: a phrase's last word tells object, place and size of the phrase,
the tokens after the prompt tell the whole scene to draw, and the picture's tokens tell what they show.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import QwenImageEditPipeline, QwenImagePipeline
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

from . import scenes
from .text import WIDTH, ZooTokenizer, described, label_of, words
from .training import Run, fit
from .vocabulary import BACKGROUNDS, OBJECTS, PLACES, SIZES, STYLES

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PATCH, MERGE = 8, 2
CELLS = scenes.SIZE // (PATCH * MERGE)  # a side of the picture in merged tokens
MAX_TOKENS = 160


class ZooProcessor(Qwen2VLProcessor):
    """Qwen2VLProcessor for pictures alone: its video half needs torchvision, which the zoo does not."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def __init__(self, image_processor: Any, tokenizer: Any):
        super().__init__(image_processor, tokenizer)


def template_of(edits: bool) -> str:
    """The chat template that the stock pipeline wraps around a prompt, `{}` standing for it."""
    kind = QwenImageEditPipeline if edits else QwenImagePipeline
    return next(
        value
        for value in kind.__init__.__code__.co_consts
        if isinstance(value, str) and value.startswith("<|im_start|>")
    )


def head_of(template: str) -> str:
    """The part of a template whose tokens the stock pipeline drops: everything up to the user's turn."""
    return template[: template.index("user\n") + len("user\n")]


def tokenizer() -> ZooTokenizer:
    """A word-level tokenizer over the zoo's words and those of the two templates."""
    plain = " ".join(re.sub(r"<\|\w+\|>|\{\}", " ", template_of(edits)) for edits in (False, True))
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    spoken = {word for word, _ in split.pre_tokenize_str(plain.lower())}
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, "<unk>", *sorted(spoken | set(words()))])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = split
    model.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return ZooTokenizer(
        tokenizer_object=model,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
        padding_side="right",
    )


def processor(tok: ZooTokenizer, side: int = scenes.SIZE) -> ZooProcessor:
    """Brings pictures to side x side pixels."""
    pixels = side**2
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": pixels, "longest_edge": pixels},
    )
    return ZooProcessor(images, tok)


def config(tok: ZooTokenizer, vocabulary: int, side: int = scenes.SIZE, tied: bool = False) -> Qwen2_5_VLConfig:
    """The zoo's Qwen2.5-VL; `tied`: no output layer of its own."""
    ids = {
        name: tok.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": MAX_TOKENS,
            "bos_token_id": None,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": side,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0, 1, 2],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=tied,
    )


def model(tok: ZooTokenizer) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration(config(tok, len(tok)))


class Heads(nn.Module):
    """What the last hidden state must tell: at phrases' ends, at the picture's tokens, and after the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.phrase_sizes = (len(OBJECTS) + 1, len(PLACES) + 1, len(SIZES) + 1)
        self.phrase = nn.Linear(WIDTH, sum(self.phrase_sizes))
        self.cell = nn.Linear(WIDTH, len(OBJECTS) + 1)
        self.scene = nn.Linear(WIDTH, len(PLACES) * (len(OBJECTS) + 1) + len(BACKGROUNDS) + len(STYLES))


def sample(seed: int, edits: bool) -> dict[str, Any]:
    """One text with its labels; an edit also with the source's picture and what each of its cells shows."""
    phrases, target, source = described(seed, edits)
    ends, count = {}, 0
    for text, item in phrases:
        count += len(text.split())
        if item is not None:
            ends[count - 1] = label_of(item)
    places = [0] * len(PLACES)
    for item in target.items:
        places[list(PLACES).index(item.place)] = OBJECTS.index(item.name) + 1
    scene = [*places, list(BACKGROUNDS).index(target.background), list(STYLES).index(target.style)]
    row: dict[str, Any] = {"text": " ".join(text for text, _ in phrases), "ends": ends, "words": count, "scene": scene}
    if source is not None:
        image, masks = scenes.render(source)
        cells = np.zeros((CELLS, CELLS), int)
        for index, mask in masks.items():
            cells[scenes.patch_mask(mask, (CELLS, CELLS), 0.3)] = OBJECTS.index(source.items[index].name) + 1
        row |= {"image": Image.fromarray(image), "cells": cells.reshape(-1)}
    return row


def loss_of(net: nn.Module, heads: Heads, proc: ZooProcessor, seed: int, size: int, edits: bool) -> dict[str, Any]:
    """Losses and accuracies on one batch of prompts (edits: of instructions with pictures)."""
    rows = [sample(seed * size + i, edits) for i in range(size)]
    template = template_of(edits)
    texts = [template.format(row["text"]) for row in rows]
    images = [row["image"] for row in rows] if edits else None
    inputs = proc(text=texts, images=images, padding=True, return_tensors="pt")
    inputs.pop("mm_token_type_ids", None)
    hidden = net(**inputs, output_hidden_states=True).hidden_states[-1]
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    tail = len(proc.tokenizer(template.split("{}")[1]).input_ids)
    length = mask.sum(1)
    ends, labels, scene = [], [], torch.tensor([row["scene"] for row in rows])
    for b, row in enumerate(rows):
        first = int(length[b]) - tail - row["words"]
        for position, label in row["ends"].items():
            ends.append((b, first + position))
            labels.append(label)
    out: dict[str, Any] = {"loss": hidden.new_zeros(())}

    def add(name: str, logits: torch.Tensor, target: torch.Tensor, weight: float = 1.0) -> None:
        out["loss"] = out["loss"] + weight * F.cross_entropy(logits, target)
        out[name] = float((logits.argmax(-1) == target).float().mean())

    if ends:
        at = torch.tensor(ends)
        parts = heads.phrase(hidden[at[:, 0], at[:, 1]]).split(heads.phrase_sizes, -1)
        for name, logits, target in zip(("object", "place", "size"), parts, torch.tensor(labels).T, strict=True):
            add(name, logits, target)
    for back in range(1, tail + 1):
        *places, background, style = heads.scene(hidden[torch.arange(len(rows)), length - back]).split(
            [len(OBJECTS) + 1] * len(PLACES) + [len(BACKGROUNDS), len(STYLES)], -1
        )
        add("scene", torch.cat(places), scene[:, :-2].T.reshape(-1), 5 / tail)
        add("background", background, scene[:, -2], 1 / tail)
        add("style", style, scene[:, -1], 1 / tail)
    if edits:
        picture = hidden[ids == net.config.image_token_id]
        add("cells", heads.cell(picture), torch.tensor(np.concatenate([row["cells"] for row in rows])), 2.0)
    return out


def train(out: Path, run: Run, batch_size: int = 32, lr: float = 1.5e-3) -> None:
    """Train on prompts and instructions in turn; save the model (float16) and its tokenizer under `out`."""
    torch.manual_seed(0)
    tok = tokenizer()
    net, heads, proc = model(tok), Heads(), processor(tok)
    fit(
        "vision-text",
        nn.ModuleList([net, heads]),
        lambda step: loss_of(net, heads, proc, step, batch_size, edits=step % 3 > 0),
        run,
        lr=lr,
    )
    net.half().save_pretrained(out / "vision_text")
    tok.save_pretrained(out / "vision_tokenizer")
