"""Prompt sets: every format says the same, and a bad row is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from uvr_core.errors import UVRError
from uvr_evaluation import prompt_sets


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "prompt,seed\na cat,-3\n", "a.csv:2: seed: expected a whole number >= 0, got '-3'"),
        ("a.csv", "prompt,seed\na cat,1.5\n", "got '1.5'"),
        ("a.csv", "text\na cat\n", "a.csv:2: no prompt"),
        ("a.csv", "prompt\na cat, a dog\n", "more values than columns"),
        ("a.csv", "prompt\n", "no prompts in this file"),
        ("a.csv", "prompt,image\na cat,none.png\n", "no such file"),
        ("a.jsonl", '{"prompt": "a cat"\n', "a.jsonl:1: not JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl:1: expected an object, got list"),
        ("a.jsonl", '{"prompt": 3}\n', "prompt: expected text, got 3"),
        ("a.jsonl", '{"prompt": "a", "expect": [1]}\n', "expect: expected labels"),
        ("a.jsonl", '{"prompt": "a", "seed": true}\n', "seed: expected a whole number"),
        ("a.parquet", "PAR1", "not a Parquet file"),
        ("a.txt", "a cat\n", "a prompt set is .csv, .jsonl or .parquet"),
    ],
)
def test_bad_prompt_sets(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UVRError) as caught:
        prompt_sets.read_tasks(path)
    assert message in str(caught.value)


def test_every_format_says_the_same(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    Image.new("RGB", (8, 8)).save(tmp_path / "source.png")
    rows: list[dict[str, Any]] = [
        {"prompt": "a cat, on a mat", "concept": "weapon", "seed": 7, "image": "source.png", "expect": ["cat", "mat"]},
        {"prompt": "ein Hügel", "concept": None, "seed": None, "image": "source.png", "expect": []},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (tmp_path / "a.csv").write_text(
        "instruction,concept,seed,image,expect,more\n"
        '"a cat, on a mat",weapon,7,source.png,cat; mat,x\nein Hügel,,,source.png,,\n', "utf-8",
    )  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    sets = [prompt_sets.read_tasks(tmp_path / f"a.{kind}", seed=100) for kind in ("jsonl", "csv", "parquet")]
    assert sets[0] == sets[1] == sets[2]
    assert [task.seed for task in sets[0]] == [7, 101]
    assert [task.group for task in sets[0]] == ["weapon", "benign"]


def test_an_image_in_some_rows_only_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "source.png")
    (tmp_path / "a.csv").write_text("prompt,image\na,source.png\nb,\n")
    with pytest.raises(UVRError, match="row 2 has no image"):
        prompt_sets.read_tasks(tmp_path / "a.csv")
