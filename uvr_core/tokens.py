"""Where text, output and reference tokens lie on the token axis of one attention call."""

from __future__ import annotations

from enum import IntEnum

import attrs

from .adapter import Adapter, Layout


class Role(IntEnum):
    """What a token stands for: the prompt, the image being drawn, or a source image in context."""

    TEXT = 0
    OUTPUT = 1
    REFERENCE = 2


@attrs.frozen
class TokenSpans:
    """The spans of one token axis, of queries or of keys. A role that the axis lacks has an empty span.

    The image span (output and reference tokens together) is anchored to one end of the axis, and text is what is left:
    text length is never declared.

    Attributes:
        tokens: S, the length of the axis.
        text, output, reference: slices of it, with start and stop in 0..S.
    """

    tokens: int
    text: slice
    output: slice
    reference: slice

    @classmethod
    def of(cls, adapter: Adapter, layout: Layout, tokens: int) -> TokenSpans:
        """The spans of an axis of `tokens`, at least `layout.image` of them."""
        first = 0 if adapter.image_at == "start" else tokens - layout.image
        text = slice(layout.image, tokens) if adapter.image_at == "start" else slice(0, first)
        references = layout.image - layout.output
        output = first if adapter.output_first else first + references
        reference = first + layout.output if adapter.output_first else first
        return cls(tokens, text, slice(output, output + layout.output), slice(reference, reference + references))

    def __getitem__(self, role: Role) -> slice:
        return (self.text, self.output, self.reference)[role]

    def count(self, role: Role) -> int:
        """How many tokens have that role."""
        span = self[role]
        return int(span.stop - span.start)

    def with_text(self, tokens: int) -> TokenSpans:
        """The same axis with another number of text tokens."""
        longer = tokens - self.count(Role.TEXT)
        moved = 0 if self.text.start else longer  # image tokens before the text stay where they are
        output, reference = (slice(s.start + moved, s.stop + moved) for s in (self.output, self.reference))
        text = slice(self.text.start, self.text.start + tokens)
        return TokenSpans(self.tokens + longer, text, output, reference)
