"""The released size: one forward of 64 x 64 patches, for which no memory is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from ...engine.attach import attach
from ..example import Example
from ..suite import expect, skip_unless
from .subject import Subject

PUBLISHED = (64, 64)  # patches of a picture of 1024 x 1024 pixels


@attrs.frozen(eq=False)
class PublishedSize(Subject):
    """The check of a released configuration, its model on the meta device."""

    published: Callable[[], Example] | None

    def published_size(self) -> None:
        skip_unless(self.published, "no configuration given")
        assert self.published is not None
        example = self.published()
        real = [name for name, tensor in example.model.state_dict().items() if not tensor.is_meta]
        expect(not real, "tensors off the meta device", expected="none", got=", ".join(real[:3]))
        arguments = example.arguments(PUBLISHED, references=(PUBLISHED,) if example.references else ())
        with attach(example.model, self.adapter) as reg, _moved_to_meta(example.model):
            example.model(**arguments)
            fired, layout = reg.report and reg.report.fired, self._read_layout(example, arguments)
        expect(fired == len(reg.taps), "attention calls", expected=len(reg.taps), got=fired)
        expect(layout.grid == PUBLISHED, "grid", expected=PUBLISHED, got=layout.grid)


@contextmanager
def _moved_to_meta(model: nn.Module) -> Iterator[None]:
    """Move arguments to the meta device after the engine has read them: its pre-hook was registered earlier."""

    def move(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))  # type: ignore[no-any-return]

    handle = model.register_forward_pre_hook(move, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
