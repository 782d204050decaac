"""Detectors and policies are pure: what they are shown must not change under their hands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ..errors import UVRError


@contextmanager
def unchanged(who: str, tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Tensors that are shown to a plugin, which may not write into them. No host sync.

    Told by torch's version counters, which tensors of inference mode lack: those are not watched.

    Raises:
        UVRError: `who` wrote into one of them.
    """
    watched = [tensor for tensor in tensors if not tensor.is_inference()]
    before = [tensor._version for tensor in watched]
    yield
    if [tensor._version for tensor in watched] != before:
        raise UVRError(
            f"{who} wrote into a tensor that it was shown; it must be a pure function: work on a copy (x.clone())"
        )
