"""Forward hooks that go nowhere else: neither copied nor pickled, and so neither can the module they are on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import UnsupportedRuntime


class Hook:
    """A forward hook of a regulated module. It runs outside of what torch.compile compiles."""

    def __init__(self, call: Callable[..., None]):
        self._call = call

    @torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
    def __call__(self, *args: Any) -> None:
        self._call(*args)

    def __reduce_ex__(self, protocol: object) -> str:
        raise uncopyable()


class InnerHook(Hook):
    """The same on a module within: while torch.compile traces it, it calls `traced` alone, of which nothing is left in
    the graph."""

    def __init__(self, call: Callable[..., None], traced: Callable[..., None] | None = None):
        super().__init__(call)
        self._traced = traced

    def __call__(self, *args: Any) -> None:
        if not torch.compiler.is_compiling():
            self._call(*args)
        elif self._traced is not None:
            self._traced(*args)


def uncopyable() -> UnsupportedRuntime:
    """The error of a copy or pickle of what is regulated."""
    return UnsupportedRuntime(
        "a regulated model cannot be copied or pickled: detach first, and attach to the copy (save_pretrained and "
        "state_dict work while attached)"
    )
