"""Generations that are read while they run: nothing of a call is kept but what the reader keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch

from ..engine.readings import Reader
from ..engine.regulator import Regulator
from ..sampling import Drawn, Progress, Sampling

MAX_PROBES = 6

Reading = Callable[[slice], AbstractContextManager[Reader]]  # a batch of the images -> what reads its calls


def read_along(
    reg: Regulator,
    pipe: Any,
    sampling: Sampling,
    probes: Sequence[str],
    reading: Reading,
    progress: Progress | None,
    after: bool = False,
) -> Iterator[Drawn]:
    """Draw, each batch under a reader of its own, shown the calls of the probes.

    Args:
        reading: entered before a batch is drawn and left after it.
        after: the calls are shown as the edits left them.
    """

    @contextmanager
    def around(batch: slice) -> Iterator[Regulator]:
        with reading(batch) as reader, reg.recording(reader, probes, after=after):
            yield reg

    return sampling.draw(pipe, around, progress)


def default_probes(reg: Regulator, transformer: torch.nn.Module) -> tuple[str, ...]:
    """Up to MAX_PROBES of the adapter's probe paths, spread over the middle of the model."""
    return spread(reg.adapter.probe_paths(transformer))


def spread(paths: Sequence[str]) -> tuple[str, ...]:
    """Up to MAX_PROBES of some paths, spread over their middle."""
    if len(paths) <= MAX_PROBES:
        return tuple(paths)
    places = np.linspace(len(paths) * 0.15, len(paths) * 0.75, MAX_PROBES).round().astype(int)
    return tuple(paths[i] for i in places)
