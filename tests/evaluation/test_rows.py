"""Rows survive a torn line and admit one writer."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from uvr_core.errors import UVRError
from uvr_evaluation.rows import RowFile, read_rows


def test_rows_survive_a_torn_line_and_admit_one_writer(tmp_path: Path) -> None:
    with RowFile(tmp_path) as file:
        file.append([{"task": 1, "arm": "stock", "score": float("nan")}, {"task": 0, "arm": "stock"}])
        with pytest.raises(UVRError, match="another process"), RowFile(tmp_path):
            pass
    path = tmp_path / "rows-00000.jsonl"
    path.write_bytes(path.read_bytes() + b'{"task": 2, "arm"')
    assert [row["task"] for row in read_rows(tmp_path)] == [0, 1]
    with RowFile(tmp_path) as file:
        file.append([{"task": 3, "arm": "stock"}])
    rows = read_rows(tmp_path)
    assert [row["task"] for row in rows] == [0, 1, 3]
    assert rows[1]["score"] is None
    packed = tmp_path / "rows-00000.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert read_rows(tmp_path) == rows
    (tmp_path / "rows-00001.jsonl").write_text('{"task": 3}\n')
    with pytest.raises(UVRError, match=r"rows-00001.jsonl:1: a damaged row"):
        read_rows(tmp_path)
