"""Weights of judges: a folder of the user's, or a name of the Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from uvr_core.errors import PluginError

BATCH = 16  # pictures at a time, of models that take pictures of one size


def device() -> torch.device:
    """Where judges run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(judge: str, model: str, make: Callable[[], Any]) -> Any:
    """What transformers makes of a folder or a name of the Hub.

    Raises:
        PluginError: it makes nothing; names the judge, the weights and the remedy.
    """
    try:
        return make()
    except Exception as error:
        raise PluginError(
            f"judge {judge!r} cannot load {model!r} ({told(error)}): "
            f"fetch it from the Hub where there is a network, or name a folder that holds it: {judge}=FOLDER:label"
        ) from error


def load_named(judge: str, model: str | None, published: str, make: Callable[[str], Any]) -> Any:
    """As `load`, of what the user named; if nothing, of the published name, from the cache alone.

    Args:
        model: folder or name of the Hub; None: `published`, and no network is asked.
        make: called with the folder or name.

    Raises:
        PluginError: nothing was named and the cache does not hold it, or as `load`.
    """
    source = model
    if source is None:
        from huggingface_hub import snapshot_download

        try:  # not from_pretrained's own local_files_only, which still asks the Hub for an adapter
            source = snapshot_download(published, local_files_only=True)
        except Exception as error:
            raise PluginError(
                f"judge {judge!r} finds no {published!r} on this disk and fetches nothing unasked: name a folder that "
                f"holds it, {judge}=FOLDER, or, to fetch it, the Hub's name: {judge}={published}"
            ) from error
    return load(judge, source, lambda: make(source))


def told(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def rgb(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures of any mode, as RGB."""
    return [image.convert("RGB") for image in images]


def above(rows: Sequence[dict[str, float]], threshold: float) -> list[dict[str, float]]:
    """Of each row the labels whose score is above the threshold."""
    return [{label: score for label, score in row.items() if score > threshold} for row in rows]
