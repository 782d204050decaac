"""The word table of the free-form text encoders: a row of 128 numbers for each of some 26,000 words, and the tokenizer.

The rows come from a sentence encoder (tools/make_word_vectors.py), so a word that no caption showed in training lies
near
those that mean the same. A word that has no row is read in pieces ("##s", "##ing", letters), never as another word.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from ..text import ZooTokenizer
from ..vocabulary import OBJECTS
from . import wordings

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
MAX_TOKENS = 48
WIDTH = 128
_GRAMMAR = """
a an the as and or of with without in on at to from by into over under behind before beside near next front left right
middle
top bottom centre center upper lower corner edge side above below between among against it its one two three four some
any
no not nothing something thing that which what is are there this picture image drawing shows showing scene style
background
add put remove take away replace change turn make move swap draw larger smaller else together close hidden partly
covering holding carrying held carried beneath has care drawn
book seen emoji text simple clear back here part down somewhere corners one off , . ; : ! ? ' - 0 1 2 3 4 5 6 7 8 9
"""


def own_words() -> list[str]:
    """Every word of the captions' grammar and wordings, sorted, so that each has a row."""
    texts = [_GRAMMAR, *OBJECTS]
    for table in (wordings.SYNONYMS, wordings.DESCRIPTIONS, wordings.BACKGROUND_WORDS, wordings.STYLE_WORDS):
        texts += [text for group in table.values() for text in group]
    texts += [word for group in wordings.SIZE_WORDS.values() for word in group]
    return sorted({word for text in texts for word in split(text)})


def split(text: str) -> list[str]:
    """A text's words as the tokenizer sees them before it looks for pieces."""
    return re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]", text.lower())


def read(path: Path) -> tuple[list[str], torch.Tensor]:
    """The words in the order of their rows, and the rows (V, 128) float32, of a words.safetensors."""
    with safe_open(path, "pt") as file:
        words = json.loads(file.metadata()["words"])
        return words, file.get_tensor("table").float() * file.get_tensor("scale").float()


def tokenizer(words: list[str], max_tokens: int = MAX_TOKENS) -> ZooTokenizer:
    """WordPiece over the table's rows: lower case, punctuation and digits apart, `<s>` ... `</s>`."""
    vocabulary = {word: index for index, word in enumerate(words)}
    model = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", max_input_chars_per_word=40))
    model.normalizer = normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    start, end = SPECIALS.index("<s>"), SPECIALS.index("</s>")
    model.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    return ZooTokenizer(
        tokenizer_object=model,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_tokens,
        padding_side="right",
    )
