"""Where the words of a prompt lie among the text tokens that a transformer attends to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..adapter import Adapter
from ..errors import UnsupportedRuntime


def spans_of(prompt: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """(first, end) characters of every place where a prompt says one of the words, whole; case and a plural s aside."""
    terms = "|".join(re.escape(word.strip()) for word in sorted(words, key=len, reverse=True) if word.strip())
    return [match.span() for match in re.finditer(rf"(?i)(?<!\w)(?:{terms})s?(?!\w)", prompt)] if terms else []


def columns_of(
    pipe: Any, adapter: Adapter, prompts: Sequence[str], words: Sequence[str], tokens: int
) -> list[list[int]]:
    """Which text tokens stand for the words, per prompt of one call of the pipeline.

    Args:
        pipe: the pipeline; its tokenizers are those that the adapter names.
        prompts: of one call, padded to the longest.
        tokens: length of the text axis in that call.

    Returns:
        Places on the text axis, of every text encoder whose tokens lie there; empty where a prompt says none.

    Raises:
        UnsupportedRuntime: the adapter names no tokenizers, or one does not tell which characters a token stands for.
    """
    if not adapter.tokenizers:
        raise UnsupportedRuntime(
            f"where a word lies on the text axis of {adapter.model} is not known: adapter {adapter.name!r} names no "
            "tokenizers"
        )
    places = [spans_of(prompt, words) for prompt in prompts]
    if template := getattr(pipe, "prompt_template_encode", None):
        head, _, tail = template.partition("{}")
        tokenizer = getattr(pipe, adapter.tokenizers[0])
        wholes = [head + prompt + tail for prompt in prompts]
        # Counted from the end: the head is cut off again, and a source image's tokens stand before the prompt.
        shift = tokens - max(len(tokenizer(whole).input_ids) for whole in wholes)
        columns = [
            [shift + at for at in _tokens(tokenizer, whole, [(a + len(head), b + len(head)) for a, b in spans])]
            for whole, spans in zip(wholes, places, strict=True)
        ]
    else:
        columns = [
            [
                place * pipe.tokenizer_max_length + at
                for place, name in enumerate(adapter.tokenizers)
                if getattr(pipe, name.replace("tokenizer", "text_encoder"), None) is not None
                for at in _tokens(getattr(pipe, name), prompt, spans)
            ]
            for prompt, spans in zip(prompts, places, strict=True)
        ]
    return [[at for at in row if 0 <= at < tokens] for row in columns]


def _tokens(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]) -> Iterator[int]:
    """The tokens that share a character with one of the spans."""
    if not spans:
        return
    try:
        offsets = tokenizer(text, return_offsets_mapping=True).offset_mapping
    except NotImplementedError:
        raise UnsupportedRuntime(
            f"{type(tokenizer).__name__} does not tell which characters a token stands for; use its fast version"
        ) from None
    for index, (first, end) in enumerate(offsets):
        if any(first < stop and start < end for start, stop in spans):
            yield index
