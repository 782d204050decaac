"""What a baseline is: another way to keep a concept out, for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs

from ..concepts import ConceptBank
from .judge import ConceptTerms, Judge


@attrs.frozen(eq=False)
class Request:
    """One call of a pipeline that a baseline is to make safe.

    Attributes:
        pipe: the pipeline, stock, nothing attached.
        call: its keyword arguments; `prompt`, `generator` and, where the pipeline takes them, `image` and
            `negative_prompt` are lists with one entry per image.
        subjects: the concepts to keep out.
        banks: their concept banks, in the same order, None where there is none.
        judges: the judges of the evaluation, by name, for baselines that look at the result.
    """

    pipe: Any
    call: Mapping[str, Any]
    subjects: tuple[ConceptTerms, ...]
    banks: tuple[ConceptBank | None, ...] = ()
    judges: Mapping[str, Judge] = attrs.field(factory=dict)

    @property
    def batch(self) -> int:
        return len(self.call["prompt"])


@runtime_checkable
class Baseline(Protocol):
    """Another way to keep a concept out, behind one interface, for comparison. Made without arguments.

    It leaves the pipeline bitwise as it was, also when it raises.
    """

    def generate(self, request: Request) -> Sequence[Any]:
        """One PIL image per prompt, or None where it refuses to give one.

        Raises:
            UnsupportedRuntime: it does not work on this pipeline; the message says why.
        """
        ...
