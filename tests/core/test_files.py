"""JSON that is valid whatever the floats, files that are whole or absent, tables and pictures read or refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from PIL import Image

from uvr_core.errors import UVRError
from uvr_core.files import csv_rows, jsonl_rows, printable, read_picture, text_of, to_json, write_whole


def test_json_says_null_where_a_float_is_no_number() -> None:
    data = {"a": [1.5, math.nan, (math.inf, -math.inf)], "ü": {"deep": math.nan}, "n": 3}
    assert json.loads(to_json(data)) == {"a": [1.5, None, [None, None]], "ü": {"deep": None}, "n": 3}
    assert "ü" in to_json(data)


@pytest.mark.parametrize("old", [None, "old"])
def test_a_write_that_breaks_off_leaves_what_was_there(
    tmp_path: Path, old: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    if old is not None:
        write_whole(path, old)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["x.json"])
    assert old is None or path.read_text() == old


def test_text_is_utf8_with_or_without_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbf\xc3\xbc")
    assert text_of(path) == "ü"
    path.write_bytes(b"a\xfc")
    with pytest.raises(UVRError, match=r"x\.txt: not UTF-8 text at byte 1"):
        text_of(path)


def test_rows_of_a_table_know_their_line(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('prompt,seed\n"a cat,\nsitting",7\na dog,\n')
    rows = [(where.rpartition(":")[2], dict(row)) for where, row in csv_rows(path, "prompt")]
    assert rows == [("3", {"prompt": "a cat,\nsitting", "seed": "7"}), ("4", {"prompt": "a dog", "seed": ""})]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed\n7\n", "x.csv:1: no column 'prompt'; the columns are: seed"),
        ("prompt\na cat, sitting\n", "x.csv:2: more values than columns"),
    ],
)
def test_a_table_that_cannot_be_meant(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(UVRError, match=says):
        list(csv_rows(path, "prompt"))


def test_objects_a_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert list(jsonl_rows(path)) == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"a": 2})]
    for bad, says in (("{", "x.jsonl:1: not JSON"), ("[1]", "x.jsonl:1: expected an object, got list")):
        path.write_text(bad)
        with pytest.raises(UVRError, match=says):
            list(jsonl_rows(path))


def test_pictures_are_rgb_of_the_size_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("LA", (4, 6), (200, 0)).save(path)
    assert (read_picture(path).mode, read_picture(path).size, read_picture(path, (8, 2)).size) == (
        "RGB",
        (4, 6),
        (8, 2),
    )
    path.write_bytes(b"no picture")
    for option, says in (("--image", r"^--image .*x\.png: not a picture"), ("", r"^/.*x\.png: not a picture")):
        with pytest.raises(UVRError, match=says):
            read_picture(path, option=option)


def test_lines_of_json_may_hold_separators_of_unicode(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a\u2028b\u0085c"}\n{"prompt": "d"}\r\n', "utf-8")
    assert [(where[-1], row["prompt"]) for where, row in jsonl_rows(path)] == [("1", "a\u2028b\u0085c"), ("2", "d")]


@pytest.mark.parametrize(("line", "says"), [("[" * 200_000, "nested too deep"), ('{"a": "\\ud800"}', "surrogate")])
def test_lines_of_json_that_are_no_text_are_refused_by_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f"{{}}\n{line}\n", "utf-8")
    with pytest.raises(UVRError, match=rf"x\.jsonl:2: .*{says}"):
        list(jsonl_rows(path))


def test_what_moves_a_cursor_is_printed_as_an_escape() -> None:
    assert printable("a\x1b[2Jü\u202eb") == "a\\x1b[2Jü\\u202eb"
