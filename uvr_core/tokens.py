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

    The image span (output and reference tokens together) is anchored to one end of the axis, and text is what is left
    beyond the layout's padding: text length is never declared.

    Attributes:
        tokens: S, the length of the axis.
        text, output, reference: slices of it, with start and stop in 0..S.
        padding: slice between text and image whose tokens have no role.
    """

    tokens: int
    text: slice
    output: slice
    reference: slice
    padding: slice

    @classmethod
    def of(cls, adapter: Adapter, layout: Layout, tokens: int) -> TokenSpans:
        """The spans of an axis of `tokens`, at least `layout.image` and `layout.padding` of them."""
        start, image, others = adapter.image_at == "start", layout.image, layout.image + layout.padding
        first = 0 if start else tokens - image
        text = slice(others, tokens) if start else slice(0, tokens - others)
        padding = slice(image, others) if start else slice(text.stop, first)
        references = image - layout.output
        output = first if adapter.output_first else first + references
        reference = first + layout.output if adapter.output_first else first
        return cls(
            tokens, text, slice(output, output + layout.output), slice(reference, reference + references), padding
        )

    @classmethod
    def of_call(
        cls, adapter: Adapter, layout: Layout, queries: int, keys: int, known: int | None = None
    ) -> tuple[TokenSpans, TokenSpans] | None:
        """The spans of queries and of keys of the joint call, which has text among its keys.

        Its queries are all tokens; or text and output, where references and padding come out of a cache; or the image,
        or the output alone, where the adapter says that text is not among them. None: it is no joint call.

        Args:
            adapter, layout: where tokens lie.
            queries, keys: how many the call has.
            known: text tokens that the forward was given, if that is known. Where text is not among the queries, a
                segment of a prompt or a reference asks in a call of its own, and may be as long as the output: the
                joint call then has all of the text's keys.
        """
        text, bare = keys - layout.image - layout.padding, Layout(layout.grid)
        if text <= 0 or (known is not None and known != text and not adapter.text_output):
            return None
        if adapter.text_output:
            asking = {text + layout.output: bare, keys: layout}
        else:
            asking = {layout.image: Layout(layout.grid, layout.references), layout.output: bare}
        if queries not in asking:
            return None
        return cls.of(adapter, asking[queries], queries), cls.of(adapter, layout, keys)

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
        others = (slice(s.start + moved, s.stop + moved) for s in (self.output, self.reference, self.padding))
        return TokenSpans(self.tokens + longer, slice(self.text.start, self.text.start + tokens), *others)
