"""JSON that is always valid, files that are whole or absent, and a user's pictures."""

from __future__ import annotations

import json
import math
import os
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
