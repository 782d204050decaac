"""Load what ships, of either edition, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FREE = "free-"


def load(name: str, folder: str | Path | None = None) -> Any:
    """Load a zoo pipeline, on CPU in float32 and ready to call.

    Args:
        name: one of `names()`; or "free-" and a pipeline of the second edition: free English, 96 x 96 pixels.
        folder: a folder made by `uvr zoo train ... --export`, instead of the shipped one.

    Raises:
        ValueError: unknown name.
        UVRError: no such pipeline of the second edition ships.
    """
    from . import pipelines

    if not name.startswith(FREE):
        return pipelines.load(name, folder)
    from .freeform.pipelines import load_free

    return load_free(name.removeprefix(FREE), None if folder is None else Path(folder))
