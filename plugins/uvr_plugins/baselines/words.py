"""Other text for a transformer: prompts as the pipeline itself encodes them, and single words' tokens.

Nothing here names a model family: where a word's tokens lie is read through the tokenizers that the adapter names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch

from uvr_core.adapter import Adapter
from uvr_core.errors import UnsupportedRuntime
from uvr_core.protocols import ConceptTerms, Request
from uvr_core.signatures import takes

from .extra_forward import Arguments, bound, scale_name

_TEXT = ("encoder_", "txt_", "pooled_")  # the transformer's arguments that carry the prompt begin so


def words_of(subjects: Sequence[ConceptTerms]) -> tuple[str, ...]:
    """Every word of the subjects once, in order."""
    return tuple(dict.fromkeys(word for subject in subjects for word in subject.words))


def joined(words: Sequence[str]) -> str:
    """The words as one prompt."""
    return " , ".join(words)


class _Caught(Exception):
    """Carries the transformer's arguments out of a pipeline's call."""

    def __init__(self, arguments: Arguments):
        super().__init__("the pipeline was stopped at its first forward")
        self.arguments = arguments


def text_for(request: Request, prompts: Sequence[str], adapter: Adapter) -> Arguments:
    """What the pipeline hands its transformer in place of its text if these were the prompts.

    The pipeline itself encodes them, source images and all, in a call without guidance that is stopped before the
    transformer runs: the cost is one text encoding and, in editing, one encoding of the sources. The call's own
    generators and the global one are not used.

    Args:
        request: the request; one prompt per image of its batch is expected.
        prompts: B prompts.

    Returns:
        {argument: value} of the transformer's arguments that carry the prompt, for a batch of B.
    """
    pipe, call = request.pipe, dict(request.call)
    for name in ("negative_prompt", "prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"):
        call.pop(name, None)
    name = scale_name(adapter)
    if takes(pipe, name):
        call[name] = 1.0
    generators = [torch.Generator().manual_seed(0) for _ in prompts]

    def catch(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        raise _Caught(bound(module, args, kwargs))

    handle = pipe.transformer.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with quiet(pipe):
            pipe(**{**call, "prompt": list(prompts), "generator": generators})
    except _Caught as caught:
        return {name: value for name, value in caught.arguments.items() if name.startswith(_TEXT)}
    finally:
        handle.remove()
        getattr(pipe, "maybe_free_model_hooks", lambda: None)()
    raise UnsupportedRuntime(f"{type(pipe).__name__} made no call of its transformer")


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """No progress bar within."""
    missing = object()
    before = vars(pipe).get("_progress_bar_config", missing)
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        if before is missing:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before


@attrs.frozen(eq=False)
class WordTokens:
    """Words as text tokens of their own, each encoded by itself, as ConceptAttention has its concepts.

    Attributes:
        text: the transformer's arguments with these tokens in place of a prompt's, for a batch of B; the pooled
            vectors are left out.
        columns: for each word the positions of its tokens on that text axis; one per text encoder whose tokens lie
            there.
    """

    text: Arguments
    columns: tuple[tuple[int, ...], ...]


def word_tokens(request: Request, adapter: Adapter, words: Sequence[str]) -> WordTokens:
    """Encode each word as a prompt and keep its last token.

    Raises:
        UnsupportedRuntime: the adapter names no tokenizers, or one does not tell which characters a token stands for.
    """
    tokens: list[torch.Tensor] = []
    columns: list[tuple[int, ...]] = []
    text: Arguments = {}
    for word in words:
        text = text_for(request, [word] * request.batch, adapter)
        states = text["encoder_hidden_states"]
        ends = [at for at in _last_tokens(request.pipe, adapter, word, text) if 0 <= at < states.shape[1]]
        columns.append(tuple(range(len(tokens), len(tokens) + len(ends))))
        tokens += [states[:, at] for at in ends]
    before, after = text["encoder_hidden_states"].shape[1], len(tokens)
    replaced: Arguments = {"encoder_hidden_states": torch.stack(tokens, 1)}
    for name, value in text.items():
        if name.startswith("pooled_") or name in replaced:
            continue
        if isinstance(value, torch.Tensor) and value.ndim == 2 and value.shape == (request.batch, before):  # a mask
            value = value.new_ones(request.batch, after)
        elif isinstance(value, torch.Tensor) and value.shape[0] == before:  # position ids
            value = value[:1].expand(after, *value.shape[1:])
        replaced[name] = value
    return WordTokens(replaced, tuple(columns))


def _last_tokens(pipe: Any, adapter: Adapter, word: str, text: Arguments) -> list[int]:
    """Where the last token of a one-word prompt lies on the text axis, per text encoder; `text`: its `text_for`."""
    if not adapter.tokenizers:
        raise UnsupportedRuntime(
            f"where a word lies on the text axis of {adapter.model} is not known: adapter {adapter.name!r} names no "
            "tokenizers"
        )
    if template := getattr(pipe, "prompt_template_encode", None):
        head, _, tail = template.partition("{}")
        tokenizer, whole = getattr(pipe, adapter.tokenizers[0]), head + word + tail
        mask = text.get("encoder_hidden_states_mask")
        length = text["encoder_hidden_states"].shape[1] if mask is None else int(mask[0].sum())
        behind = len(tokenizer(whole).input_ids) - _end(tokenizer, whole, len(head + word))
        return [length - behind]  # counted from the end, since a source image's tokens stand before the word
    return [
        place * pipe.tokenizer_max_length + _end(getattr(pipe, name), word, len(word))
        for place, name in enumerate(adapter.tokenizers)
        if getattr(pipe, name.replace("tokenizer", "text_encoder"), None) is not None
    ]


def _end(tokenizer: Any, text: str, stop: int) -> int:
    """The token that holds the character before place `stop` of a text."""
    try:
        offsets = tokenizer(text, return_offsets_mapping=True).offset_mapping
    except NotImplementedError:
        raise UnsupportedRuntime(
            f"{type(tokenizer).__name__} does not tell which characters a token stands for; use its fast version"
        ) from None
    return next(index for index, (first, end) in enumerate(offsets) if first < stop <= end)
