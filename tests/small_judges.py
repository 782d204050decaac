"""Small random models of transformers' own classes, with their processors, in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from PIL import Image

IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8)) for i in range(3)]
WORDS = ["<unk>", "<pad>", "<bos>", "<eos>", "<boi>", "<eoi>", "<image>", "yes", "Yes", "no", "No", "pistol", "knife"]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIDE = {"height": 32, "width": 32}
CHAT = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE {% else %}{{ c['text'] }} "
    "{% endif %}{% endfor %}{% endfor %}"
)


def tokenizer(words: list[str], **special: str) -> Any:
    """One token a word, as it is spelled."""
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.add_special_tokens(["<image>", "<boi>", "<eoi>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        extra_special_tokens=special,
    )  # fmt: skip


def vit(path: Path, classes: tuple[str, ...] = ("normal", "nsfw")) -> None:
    config = transformers.ViTConfig(
        **SMALL, image_size=32, patch_size=8, id2label=dict(enumerate(classes)),
        label2id={name: place for place, name in enumerate(classes)}, initializer_range=0.5,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(path)
    transformers.ViTImageProcessor(size=SIDE).save_pretrained(path)


def clip(path: Path, width: int = 12) -> None:
    config = transformers.CLIPVisionConfig(**SMALL, image_size=32, patch_size=8, projection_dim=width)
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(path)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIDE).save_pretrained(path)


def llava(path: Path, words: list[str] = WORDS) -> None:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**SMALL, image_size=32, patch_size=8),
        text_config=transformers.LlamaConfig(
            **SMALL, vocab_size=len(words), num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.5
        ),
        image_token_index=words.index("<image>"), vision_feature_layer=-1,
    )  # fmt: skip
    transformers.LlavaForConditionalGeneration(config).save_pretrained(path)
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIDE)
    transformers.LlavaProcessor(
        pictures, tokenizer(words), patch_size=8, vision_feature_select_strategy="default",
        chat_template=CHAT.replace("IMAGE", "<image>"), num_additional_image_tokens=1,
    ).save_pretrained(path)  # fmt: skip


def gemma(path: Path, shield: bool = False) -> None:
    """Gemma 3, or ShieldGemma 2, which is one with another head."""
    words = [*WORDS, "sexual", "content", "Explicit", "Dangerous", "Violence", "Gore", "weapons"]
    place = words.index
    text = transformers.Gemma3TextConfig(
        **SMALL, vocab_size=len(words), num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
        sliding_window=64, initializer_range=0.5, tie_word_embeddings=False,
    )  # fmt: skip
    parts = {
        "text_config": text,
        "vision_config": transformers.SiglipVisionConfig(**SMALL, image_size=32, patch_size=8),
        "mm_tokens_per_image": 4,
        "boi_token_index": place("<boi>"),
        "eoi_token_index": place("<eoi>"),
        "image_token_index": place("<image>"),
    }
    answers = {"yes_token_index": place("Yes"), "no_token_index": place("No")}
    if shield:
        net: Any = transformers.ShieldGemma2ForImageClassification(transformers.ShieldGemma2Config(**parts, **answers))
    else:
        net = transformers.Gemma3ForConditionalGeneration(transformers.Gemma3Config(**parts))
    seen = (net.model if shield else net).model.multi_modal_projector
    torch.nn.init.normal_(seen.mm_input_projection_weight)  # 0 until it is trained
    net.save_pretrained(path)
    processor = transformers.ShieldGemma2Processor if shield else transformers.Gemma3Processor
    named = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    processor(
        transformers.Gemma3ImageProcessor(size=SIDE), tokenizer(words, **named),
        chat_template=CHAT.replace("IMAGE", "<boi>"), image_seq_length=4,
    ).save_pretrained(path)  # fmt: skip


def save(kind: Any, path: Path, *args: Any) -> str:
    """The folder, with a small model of the kind in it; the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(path, *args)
    return str(path)
