"""Prompt sets: files of tasks (CSV, JSONL or Parquet)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from uvr_core.errors import UVRError
from uvr_core.files import csv_rows, jsonl_rows

COLUMNS = ("prompt", "instruction", "concept", "seed", "image", "expect", "absent", "group")


@attrs.frozen
class Task:
    """One picture to be made.

    Attributes:
        index: place in the file, 0 first.
        prompt: what is asked for; for an editing pipeline the instruction.
        seed: of the picture's own generator.
        concept: the concept that the prompt or the source brings in; "" = benign.
        image: path of the source picture, for an editing pipeline.
        expect: labels of what else the picture should show.
        absent: labels of what it should not show although it is no concept: what an edit takes away.
        group: under which name the task is summed up; the concept, or "benign", unless the file says.
    """

    index: int
    prompt: str
    seed: int
    concept: str = ""
    image: Path | None = None
    expect: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    group: str = ""

    @property
    def unsafe(self) -> bool:
        return bool(self.concept)


def read_tasks(path: Path, seed: int = 0) -> list[Task]:
    """Tasks of a .csv, .jsonl or .parquet file.

    Columns: `prompt` (or `instruction`), and where wanted `concept` (empty: benign), `seed` (else `seed` + row),
    `image` (a path, relative to the file), `expect` and `absent` (labels, separated by ";", or a list) and `group`.
    Other columns are not read.

    Raises:
        UVRError: no file, no task in it, or a bad row, named.
    """
    readers = {".csv": csv_rows, ".jsonl": jsonl_rows, ".parquet": parquet_rows}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UVRError(f"{path}: a prompt set is .csv, .jsonl or .parquet, this is {suffix or 'without a suffix'}")
    if not path.is_file():
        raise UVRError(f"{path}: no such prompt set")
    tasks = [_task(index, row, where, path.parent, seed) for index, (where, row) in enumerate(readers[suffix](path))]
    if not tasks:
        raise UVRError(f"{path}: no prompts in this file; expected at least one")
    if len({task.image is None for task in tasks}) > 1:
        bare = next(task.index for task in tasks if task.image is None)
        raise UVRError(
            f"{path}: row {bare + 1} has no image and others have one; expected one in every row, or in none"
        )
    return tasks


def parquet_columns(path: Path) -> list[str]:
    """Names of a Parquet file's columns."""
    with _parquet(path) as parquet:
        return list(parquet.read_schema(path).names)


def parquet_rows(path: Path, wanted: Sequence[str] = COLUMNS) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, row) of a Parquet file, of the wanted columns that it has; the others, pictures say, are not read."""
    columns = [name for name in parquet_columns(path) if name in wanted]
    with _parquet(path) as parquet:
        rows = parquet.read_table(path, columns=columns).to_pylist()
    for number, row in enumerate(rows, 1):
        yield f"{path}: row {number}", row


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow.parquet as parquet
        from pyarrow import ArrowException
    except ImportError as error:
        raise UVRError(f"{path}: reading Parquet needs pyarrow: pip install 'uvr-core[eval]'") from error
    try:
        yield parquet
    except (ArrowException, OSError) as error:
        raise UVRError(f"{path}: not a Parquet file: {error}") from error


def cell_text(row: Mapping[str, Any], name: str, where: str) -> str:
    """A cell's text, stripped; "" where there is none. Raises UVRError: something else than text."""
    value = row.get(name)
    if value is None or value != value:  # Parquet files from data frames hold NaN for nothing
        return ""
    if not isinstance(value, str):
        raise UVRError(f"{where}: {name}: expected text, got {value!r}")
    return value.strip()


def _task(index: int, row: Mapping[str, Any], where: str, folder: Path, seed: int) -> Task:
    def text(name: str) -> str:
        return cell_text(row, name, where)

    prompt = text("prompt") or text("instruction")
    if not prompt:
        raise UVRError(f"{where}: no prompt; expected text in the column 'prompt' (or 'instruction')")
    image = text("image")
    source = folder / image if image else None
    if source is not None and not source.is_file():
        raise UVRError(f"{where}: image: no such file: {source}")
    concept = text("concept")
    return Task(
        index,
        prompt,
        seed_of(row.get("seed"), where, seed + index),
        concept,
        source,
        _labels(row, "expect", where),
        _labels(row, "absent", where),
        text("group") or concept or "benign",
    )


def _labels(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = row.get(name)
    if value is None or value != value:
        return ()
    labels = value.split(";") if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    if not all(isinstance(label, str) for label in labels):
        raise UVRError(f"{where}: {name}: expected labels separated by ';', or a list of them, got {value!r}")
    return tuple(label.strip() for label in labels if label.strip())


def seed_of(value: Any, where: str, otherwise: int) -> int:
    """A cell as a seed; `otherwise` where it is empty. Raises UVRError: no whole number >= 0."""
    if value is None or value == "" or value != value:
        return otherwise
    try:
        seed = int(value)
        if isinstance(value, bool) or seed != float(value) or not 0 <= seed < 2**63:
            raise ValueError
    except (TypeError, ValueError) as error:
        raise UVRError(f"{where}: seed: expected a whole number >= 0, got {value!r}") from error
    return seed
