"""Detectors and policies are pure: what they are shown must not change under their hands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ..errors import UVRError


@contextmanager
def unchanged(who: str, tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Tensors that are shown to a plugin, which may not write into them.

    Told by torch's version counters, without a host sync. Tensors of inference mode lack them and are compared with
    copies, with one: show `watchable` ones.

    Raises:
        UVRError: `who` wrote into one of them.
    """
    watched = [tensor for tensor in tensors if not tensor.is_inference()]
    before = [tensor._version for tensor in watched]
    copies = [(tensor, tensor.clone()) for tensor in tensors if tensor.is_inference()]
    yield
    if [tensor._version for tensor in watched] != before or not all(_same(*pair) for pair in copies):
        raise UVRError(
            f"{who} wrote into a tensor that it was shown; it must be a pure function: work on a copy (x.clone())"
        )


def watchable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor; of one of inference mode, a copy whose version is counted."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit, a NaN the same as itself."""
    return bool(((one == other) | ((one != one) & (other != other))).all())
