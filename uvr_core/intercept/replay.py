"""A pipeline's call that can be made again with the same noise."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import attrs
import torch


def _own(value: Any) -> Any:
    """A list of one's own: some pipelines write into the list of prompts that they are given."""
    return list(value) if type(value) is list else value


@attrs.frozen
class Replay:
    """The arguments of a call, and the state of every random generator that it draws from.

    Attributes:
        args, kwargs: as given; lists are copies.
        states: (generator, its state before the call).
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    states: tuple[tuple[torch.Generator, torch.Tensor], ...]

    @classmethod
    def of(cls, pipeline_class: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Replay:
        """Take it before the call. Without a generator the process's own are remembered, of every device."""
        bound = inspect.signature(pipeline_class.__call__).bind_partial(None, *args, **kwargs).arguments
        generator = bound.get("generator")
        if generator is None:
            generators = [
                torch.default_generator,
                *(torch.cuda.default_generators if torch.cuda.is_available() else ()),
            ]
        else:
            generators = list(generator) if isinstance(generator, (list, tuple)) else [generator]
        states = tuple((each, each.get_state()) for each in generators)
        return cls(tuple(map(_own, args)), {name: _own(value) for name, value in kwargs.items()}, states)

    def again(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put the generators back; the arguments of the call that is to be made."""
        for generator, state in self.states:
            generator.set_state(state)
        return tuple(map(_own, self.args)), {name: _own(value) for name, value in self.kwargs.items()}
