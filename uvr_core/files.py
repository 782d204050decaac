"""JSON that is always valid, files that are whole or absent, a user's tables and pictures."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import UVRError


def finite(data: Any) -> Any:
    """The data with every NaN and infinity replaced by None, which JSON can say."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def to_json(data: Any) -> str:
    """Indented JSON, valid whatever the floats."""
    return json.dumps(finite(data), indent=1, ensure_ascii=False, allow_nan=False)


def write_whole(path: Path, data: str | bytes) -> None:
    """Put a file in place in one step: a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def printable(text: str) -> str:
    """Text in one line and with nothing that moves a terminal's cursor: what is not printable stands as an escape."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def text_of(path: Path) -> str:
    """A file's text. Raises UVRError: it is not UTF-8."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UVRError(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error


def csv_rows(path: Path, *needs: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, row) of a CSV file with a head, in which the columns `needs` are; UVRError names a bad line."""
    reader = csv.DictReader(io.StringIO(text_of(path), newline=""))
    try:
        columns = reader.fieldnames or ()
        for name in needs:
            if columns and name not in columns:
                raise UVRError(f"{path}:1: no column {name!r}; the columns are: {', '.join(columns)}")
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row:
                raise UVRError(f"{where}: more values than columns; put prompts that hold commas in double quotes")
            yield where, row
    except csv.Error as error:
        raise UVRError(f"{path}:{reader.line_num}: not CSV: {error}") from error


def jsonl_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, row) of a file with a JSON object a line; UVRError names a bad line."""
    for number, line in enumerate(text_of(path).split("\n"), 1):  # JSON may hold U+2028 and the like as they are
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()
        except RecursionError as error:
            raise UVRError(f"{path}:{number}: not JSON that can be read: nested too deep") from error
        except UnicodeEncodeError as error:
            raise UVRError(f"{path}:{number}: half of a surrogate pair, which is no text") from error
        except ValueError as error:
            raise UVRError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UVRError(f"{path}:{number}: expected an object, got {type(row).__name__}")
        yield f"{path}:{number}", row


def read_picture(path: Path, size: tuple[int, int] | None = None, *, option: str = "") -> Any:
    """An RGB PIL image.

    Args:
        size: (width, height) that it is brought to; None: as it is.
        option: that named the file, for the message.

    Raises:
        UVRError: no picture that can be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UVRError(f"{option} {path}: not a picture that can be read: {error}".lstrip()) from error
    return picture if size is None else picture.resize(size)
