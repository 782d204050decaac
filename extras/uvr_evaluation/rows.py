"""Rows on disk: one JSON line per image and arm, appended as they are made, so that a crash loses the batch in hand."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from uvr_core.errors import UVRError
from uvr_core.files import finite

Row = dict[str, Any]


class RowFile:
    """The rows that one process appends to; a context manager that holds the file alone.

    Args:
        folder: the result folder.
        process: number of the process, 0 first.

    Raises:
        UVRError: another process is writing it.
    """

    def __init__(self, folder: Path, process: int = 0):
        self.path = folder / f"rows-{process:05d}.jsonl"
        self._file: BinaryIO | None = None

    def __enter__(self) -> RowFile:
        file = open(self.path, "a+b")  # held until __exit__
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise UVRError(f"{self.path}: another process is writing this evaluation") from error
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)  # a line that a crash cut short
        self._file = file
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """All of the rows in one write, on the disk when it returns."""
        assert self._file is not None
        lines = [json.dumps(finite(dict(row)), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        self._file.write("".join(lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def read_rows(folder: Path) -> list[Row]:
    """Every whole row of every process (.jsonl or packed .jsonl.gz), in the order of tasks and, of a task, as made.

    Raises:
        UVRError: a line that is whole and not JSON.
    """
    rows = [row for path in sorted(folder.glob("rows-*.jsonl*")) for row in _lines(path)]
    return sorted(rows, key=lambda row: int(row["task"]))


def _lines(path: Path) -> Iterator[Row]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            row = json.loads(line)
            row["task"], row["arm"]
        except (ValueError, KeyError, TypeError) as error:
            raise UVRError(f"{path}:{number}: a damaged row: {error}") from error
        yield row
