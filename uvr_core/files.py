"""JSON that is always valid, and files that are whole or absent."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


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
