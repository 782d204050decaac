"""What an adapter reads off the arguments of a forward; the layout anew only where something it read is another."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import nn

from ..adapter import Adapter, Layout

_PLAIN = (type(None), bool, int, float, str)
_ABSENT = object()


@attrs.frozen
class Reading:
    """One forward's arguments, as an adapter reads them.

    Attributes:
        arguments: by parameter name, those that were passed.
        layout: None: the forward draws nothing, and the rest is not read.
        sigma: noise level per sample.
        text: number of text tokens; None: the adapter does not say.
    """

    arguments: Mapping[str, Any]
    layout: Layout | None
    sigma: torch.Tensor | None = None
    text: int | None = None


class Reader:
    """Reads the forwards of one thread.

    Positions are tensors that a pipeline makes once for all steps, and reading them costs a host sync and more time
    than all else that is done before a forward. So a layout stands as long as every argument that the adapter asked for
    is the same object, unwritten since.
    """

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._unchanged: list[Callable[[Mapping[str, Any]], bool]] | None = None

    def read(self, adapter: Adapter, arguments: Mapping[str, Any]) -> Reading:
        """Read one forward. Raises what the adapter's functions raise."""
        if self._unchanged is None or not all(unchanged(arguments) for unchanged in self._unchanged):
            self._unchanged = None
            noted = _Noted(arguments)
            self._layout = adapter.layout(noted)
            self._unchanged = noted.checks()
        if self._layout is None:
            return Reading(arguments, None)
        text = None if adapter.text is None else adapter.text(arguments)
        return Reading(arguments, self._layout, adapter.time(arguments), text)


class _Noted(Mapping[str, Any]):
    """Arguments that note which of them are asked for."""

    def __init__(self, arguments: Mapping[str, Any]):
        self._arguments, self._asked, self._whole = arguments, set[str](), False

    def __getitem__(self, name: str) -> Any:
        self._asked.add(name)
        return self._arguments[name]

    def __iter__(self) -> Iterator[str]:
        self._whole = True
        return iter(self._arguments)

    def __len__(self) -> int:
        self._whole = True
        return len(self._arguments)

    def checks(self) -> list[Callable[[Mapping[str, Any]], bool]] | None:
        """Whether other arguments would be read alike, asked for each that was; None: it cannot be told."""
        checks = [_check(name, self._arguments.get(name, _ABSENT)) for name in self._asked]
        known = [check for check in checks if check is not None]
        return None if self._whole or len(known) < len(checks) else known


def _check(name: str, value: Any) -> Callable[[Mapping[str, Any]], bool] | None:
    """Nothing is kept alive: a forward's latents are large."""
    if isinstance(value, torch.Tensor):
        if value.is_inference():  # counts no versions
            return None
        tensor, version = weakref.ref(value), value._version

        def unwritten(arguments: Mapping[str, Any]) -> bool:
            now = tensor()
            return now is not None and now._version == version and arguments.get(name) is now

        return unwritten
    if isinstance(value, nn.Module):
        module = weakref.ref(value)
        return lambda arguments: arguments.get(name) is module()
    if value is _ABSENT:
        return lambda arguments: name not in arguments
    if type(value) in _PLAIN:
        return lambda arguments: type(now := arguments.get(name, _ABSENT)) is type(value) and now == value
    return None
