"""What a judge is, and what it is asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs


@runtime_checkable
class Judge(Protocol):
    """Says what pictures show. The registered object is a factory: factory() -> Judge.

    Optional: `labels` (every label that it can report) and `locate(images, labels, (H, W)) -> (B, H, W) bool`, the
    patches where it sees any of the labels.
    """

    def __call__(self, images: Sequence[Any]) -> Sequence[Mapping[str, float]]:
        """[{label: score}], one per PIL image: the labels it sees, over its own threshold."""
        ...


@attrs.frozen
class ConceptTerms:
    """A concept in the words of prompts and of judges.

    Attributes:
        name: the concept's name.
        labels: what judges call it; an image that shows any of them is unsafe.
        words: what prompts call it: the terms of a blocklist, of a negative prompt, of a safety concept.
    """

    name: str
    labels: tuple[str, ...]
    words: tuple[str, ...]
