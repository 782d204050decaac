"""What a pipeline of the second edition learned, added to another of the same architecture: task arithmetic.

Free-form text is half of what an editing pipeline has to learn, and its sibling has learned it already. The sum
W + share (S' - S), W the first edition's weights, S its sibling's and S' the sibling's of the second edition, is a
better place to start from than any of the three (Ilharco et al. 2023, Editing Models with Task Arithmetic).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from uvr_core.errors import UVRError

from .. import storage
from ..pipelines import DATA
from .pipelines import FOLDER, family


def blend(name: str, sibling: str, share: float) -> Any:
    """The transformer of the first edition's `name` with a share of what `sibling` learned since.

    Args:
        name, sibling: pipelines of one transformer class and configuration, such as flux-kontext and flux.
        share: 0: the first edition's; 1: all that the sibling learned.

    Raises:
        UVRError: no second edition of the sibling ships, or the two are of other classes.
    """
    kind: Any = family(name)
    if kind.transformer != family(sibling).transformer:
        raise UVRError(f"{name} and {sibling} have transformers of other classes: nothing to add")
    if not (FOLDER / sibling / "transformer").is_dir():
        raise UVRError(f"no trained free-form pipeline {sibling!r} to take from")
    class_of = getattr(diffusers, kind.transformer)
    folders = (DATA / name, DATA / sibling, FOLDER / sibling)
    net, before, since = (storage.load(class_of, folder / "transformer") for folder in folders)
    weights, old, new = net.state_dict(), before.state_dict(), since.state_dict()
    with torch.no_grad():
        net.load_state_dict({key: value + share * (new[key] - old[key]) for key, value in weights.items()})
    return net


def export(name: str, sibling: str, share: float, folder: Path) -> None:
    """Write it as `storage.pack` does, for `train --start-from`."""
    storage.pack(blend(name, sibling, share), folder)
