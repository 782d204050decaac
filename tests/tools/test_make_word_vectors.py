"""The word table's tool: WordNet read as it is, rows chosen in order, numbers packed; no encoder needed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from uvr_zoo.freeform.words import SPECIALS, own_words

TOOL = Path(__file__).parents[2] / "tools" / "make_word_vectors.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_word_vectors", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    rows = {
        "noun": [
            '05 n 01 dagger 0 000 | a short knife with a pointed blade; "he drew it"',
            "13 n 01 broth 0 000 | soup",
        ],
        "adj": ["00 s 01 dagger 0 000 | not this one"],
        "verb": ["29 v 01 walk 0 000 | use one's feet (slowly)"],
        "adv": [],
    }
    for pos, lines in rows.items():
        data, index = "  1 licence\n", ["  1 licence"]
        for line in lines:
            offset = f"{len(data.encode()):08d}"
            index.append(f"{line.split()[3]} {pos[0]} 2 0 2 1 {offset} 00000000")
            data += f"{offset} {line}\n"
        (tmp_path / f"data.{pos}").write_text(data)
        (tmp_path / f"index.{pos}").write_text("\n".join(index) + "\n")
    (tmp_path / "index.sense").write_text("dagger%1:06:00:: 00000001 1 7\nwalk%2:38:00:: 00000001 1 3\n")
    return tmp_path


def test_first_senses_nouns_before_other_parts_of_speech(tool: ModuleType, wordnet: Path) -> None:
    senses, tagged = tool.read_wordnet(wordnet)
    assert senses["dagger"] == tool.Sense("noun", "05", "a short knife with a pointed blade")
    assert senses["walk"].gloss == "use one's feet"
    assert tagged["dagger"] == 7


def test_rows_begin_with_specials_and_the_zoos_own_words(tool: ModuleType, wordnet: Path) -> None:
    senses, tagged = tool.read_wordnet(wordnet)
    rows = tool.choose_words(senses, tagged, ["zebra", "walk", "##ing", "[unused1]"])
    assert rows[: len(SPECIALS)] == list(SPECIALS)
    assert set(own_words()) | {"zebra", "walk", "##ing", "q", "##q", "dagger", "broth"} <= set(rows)
    assert "[unused1]" not in rows
    assert len(rows) == len(set(rows))


def test_rows_are_packed_within_half_a_step(tool: ModuleType) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 128)).astype(np.float32)
    packed = tool.pack_rows(vectors)
    assert packed["table"].dtype == np.int8
    assert np.abs(packed["table"] * packed["scale"].astype(np.float32) - vectors).max() < 0.02


def test_held_out_wordings_are_no_training_nouns(tool: ModuleType) -> None:
    assert {"gun", "handgun", "blade"} <= tool.held_out_words()


def test_articles(tool: ModuleType) -> None:
    noun = tool.Sense("noun", "06", "")
    assert tool.with_article("axe", noun) == "an axe"
    assert tool.with_article("sharp", tool.Sense("adj", "00", "")) == "sharp"
