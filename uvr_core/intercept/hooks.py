"""Forward hooks that go nowhere else: neither copied nor pickled, and so neither can the module they are on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import UnsupportedRuntime


class Hook:
    """A forward hook of a regulated module."""

    def __init__(self, call: Callable[..., None]):
        self._call = call

    def __call__(self, *args: Any) -> None:
        self._call(*args)

    def __reduce_ex__(self, protocol: object) -> str:
        raise uncopyable()


def uncopyable() -> UnsupportedRuntime:
    """The error of a copy or pickle of what is regulated."""
    return UnsupportedRuntime(
        "a regulated model cannot be copied or pickled: detach first, and attach to the copy (save_pretrained and "
        "state_dict work while attached)"
    )
