"""The word table on disk and the tokenizer over it."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from uvr_zoo.freeform import words
from uvr_zoo.freeform.captions import caption
from uvr_zoo.freeform.scenes import sample


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "words.safetensors"
    letters = [chr(97 + i) for i in range(26)]
    rows = list(dict.fromkeys([*words.SPECIALS, *words.own_words(), *letters, *(f"##{x}" for x in letters)]))
    numbers = np.random.default_rng(0).integers(-127, 128, (len(rows), words.WIDTH)).astype(np.int8)
    scale = np.full((len(rows), 1), 0.01, np.float16)
    save_file({"table": numbers, "scale": scale}, path, metadata={"words": json.dumps(rows)})
    return path, rows, numbers * 0.01


def test_the_table_comes_back_as_numbers(table):
    path, rows, numbers = table
    read, values = words.read(path)
    assert read == rows
    assert values.shape == (len(rows), 128)
    assert np.allclose(values.numpy(), numbers, atol=1e-3)


def test_every_word_of_every_caption_has_a_row_of_its_own(table):
    tok = words.tokenizer(table[1])
    texts = [caption(sample(seed)).text for seed in range(300)]
    for text in texts:
        assert tok.tokenize(text) == words.split(text)


@pytest.mark.parametrize(
    "text", ["kryptonite", "Revolver-like  DAGGERS!", "naïve", "日本 cat", "", "a" * 200, "7 of 12"]
)
def test_anything_may_be_typed(table, text):
    tok = words.tokenizer(table[1])
    ids = tok([text, "a cat"], padding="max_length", max_length=512, truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (2, words.MAX_TOKENS)
    assert ids[0, 0] == words.SPECIALS.index("<s>")
    assert words.SPECIALS.index("</s>") in ids[0]


def test_an_unknown_word_is_read_in_pieces_never_as_another(table):
    pieces = words.tokenizer(table[1]).tokenize("kryptonite")
    assert "".join(piece.removeprefix("##") for piece in pieces) == "kryptonite"
    assert all(piece.startswith("##") for piece in pieces[1:])
