"""What the checks of an adapter share: the adapter, fresh examples, and what it reads off their arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs

from ...adapter import Adapter, Layout
from ...errors import TapNotFired
from ...intercept.calls import AttentionCall
from ...tokens import TokenSpans
from ..example import Example, Size
from ..suite import expect
from .record import record

BATCHES = (1, 3)


@attrs.frozen(eq=False)
class Subject:
    """An adapter, and () -> a fresh small model to hold it against."""

    adapter: Adapter
    make_example: Callable[[], Example]

    def _cases(self) -> Iterator[tuple[Example, Size, int, tuple[Size, ...]]]:
        """(example, size, batch, references): all sizes and batches, with and without references."""
        example = self.make_example()
        for references in self._reference_sets(example):
            for size in example.sizes:
                for batch in BATCHES:
                    yield example, size, batch, references

    @staticmethod
    def _reference_sets(example: Example) -> tuple[tuple[Size, ...], ...]:
        return ((), example.reference_sizes) if example.references else ((),)

    def _read_layout(self, example: Example, arguments: dict[str, Any]) -> Layout:
        layout = self.adapter.layout(example.bound(arguments))
        expect(isinstance(layout, Layout), "what `layout` returns", expected="a Layout", got=type(layout).__name__)
        assert layout is not None
        return layout

    def _joint_calls(
        self, example: Example, arguments: dict[str, Any], size: Size, layout: Layout, only: str | None = None
    ) -> list[AttentionCall]:
        """The taps' joint calls, by the engine's rule."""
        taps = self.adapter.taps(example.model)
        calls = record(example, {only: taps[only]} if only else taps, arguments, size)
        joint = [call for call in calls if self._spans(example, arguments, layout, call) is not None]
        if not joint:
            raise TapNotFired(f"no attention call holds the {layout.image} image tokens that the adapter reads")
        return joint

    def _spans(
        self, example: Example, arguments: dict[str, Any], layout: Layout, call: AttentionCall
    ) -> tuple[TokenSpans, TokenSpans] | None:
        """Where the tokens of a joint call lie, by the engine's rule; None: it is none."""
        text = None if self.adapter.text is None else self.adapter.text(example.bound(arguments))
        return TokenSpans.of_call(self.adapter, layout, call.query.shape[2], call.key.shape[2], text)
