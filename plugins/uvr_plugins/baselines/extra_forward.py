"""What the baselines that look into the transformer share: other text for it, guidance, hooks on its forward.

Nothing here names a model family, but for where a word's tokens lie (`word_tokens`); the rest is read from the adapter
and from what the pipeline itself hands its transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import attrs
import torch

from uvr_core.adapter import Adapter
from uvr_core.engine.lookup import find_adapter
from uvr_core.errors import UnsupportedRuntime
from uvr_core.protocols import ConceptTerms, Request
from uvr_core.signatures import default_of, forward_arguments, takes

Arguments = dict[str, Any]
_TEXT = ("encoder_", "txt_", "pooled_")  # the transformer's arguments that carry the prompt begin so


def words_of(subjects: Sequence[ConceptTerms]) -> tuple[str, ...]:
    """Every word of the subjects once, in order."""
    return tuple(dict.fromkeys(word for subject in subjects for word in subject.words))


def joined(words: Sequence[str]) -> str:
    """The words as one prompt."""
    return " , ".join(words)


def adapter_of(pipe: Any) -> Adapter:
    """The adapter of the pipeline's transformer.

    Raises:
        UnsupportedRuntime: the pipeline has no transformer.
        AdapterNotFound: no adapter recognises it.
    """
    if getattr(pipe, "transformer", None) is None:
        raise UnsupportedRuntime(f"{type(pipe).__name__} has no transformer: this baseline acts inside one")
    return find_adapter(pipe.transformer)


# ---------------------------------------------------------------------------------------------- guidance


@attrs.frozen
class Guidance:
    """How classifier-free guidance reaches the transformer in one call.

    Attributes:
        kind: "none": one pass per step (off, or distilled into the model); "two_pass": the conditional pass, then the
            unconditional one; "uc", "cu": one batch of unconditional and conditional halves in that order.
        scale: g in u + g (c - u).
    """

    kind: Literal["none", "two_pass", "uc", "cu"]
    scale: float

    def conditional(self, batch: int) -> slice:
        """The samples of a forward's batch that follow the prompt."""
        if self.kind == "uc":
            return slice(batch // 2, batch)
        return slice(0, batch // 2) if self.kind == "cu" else slice(0, batch)


def scale_name(adapter: Adapter) -> str:
    """The pipeline's argument that turns classifier-free guidance on when it is above 1."""
    return "guidance_scale" if adapter.guidance.startswith("batched") else "true_cfg_scale"


def guidance_of(pipe: Any, call: Mapping[str, Any], adapter: Adapter) -> Guidance:
    """The guidance of `pipe(**call)`."""
    name = scale_name(adapter)
    value = call.get(name, default_of(pipe, name))
    scale = 1.0 if value is None else float(value)
    if scale <= 1 or adapter.guidance == "single":
        return Guidance("none", 1.0)
    if adapter.guidance.startswith("batched"):
        return Guidance("uc" if adapter.guidance.endswith("uc") else "cu", scale)
    return Guidance("none", 1.0) if call.get("negative_prompt") is None else Guidance("two_pass", scale)


# ---------------------------------------------------------------------------------------------- text


class _Caught(Exception):
    """Carries the transformer's arguments out of a pipeline's call."""

    def __init__(self, arguments: Arguments):
        super().__init__("the pipeline was stopped at its first forward")
        self.arguments = arguments


def bound(transformer: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
    """A forward's arguments by name."""
    arguments = forward_arguments(transformer, args, kwargs)
    arguments.pop("self", None)
    return arguments


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
        UnsupportedRuntime: another family than FLUX, SD3 and Qwen-Image, whose text axes are known here, or a
            tokenizer that does not tell which characters a token stands for.
    """
    tokens: list[torch.Tensor] = []
    columns: list[tuple[int, ...]] = []
    found: Arguments = {}
    for word in words:
        found = text_for(request, [word] * request.batch, adapter)
        states = found["encoder_hidden_states"]
        ends = [at for at in _last_tokens(request.pipe, adapter, word, found) if 0 <= at < states.shape[1]]
        columns.append(tuple(range(len(tokens), len(tokens) + len(ends))))
        tokens += [states[:, at] for at in ends]
    before, after = found["encoder_hidden_states"].shape[1], len(tokens)
    text: Arguments = {"encoder_hidden_states": torch.stack(tokens, 1)}
    for name, value in found.items():
        if name.startswith("pooled_") or name in text:
            continue
        if isinstance(value, torch.Tensor) and value.ndim == 2 and value.shape == (request.batch, before):  # a mask
            value = value.new_ones(request.batch, after)
        elif isinstance(value, torch.Tensor) and value.shape[0] == before:  # position ids
            value = value[:1].expand(after, *value.shape[1:])
        text[name] = value
    return WordTokens(text, tuple(columns))


def _last_tokens(pipe: Any, adapter: Adapter, word: str, text: Arguments) -> list[int]:
    """Where the last token of a one-word prompt lies on the text axis; `text`: what `text_for` gave for it."""
    if adapter.name == "flux":
        return [_end(pipe.tokenizer_2, word, len(word))]
    if adapter.name == "sd3":
        found = [_end(pipe.tokenizer, word, len(word))]
        if getattr(pipe, "text_encoder_3", None) is not None:
            found.append(pipe.tokenizer_max_length + _end(pipe.tokenizer_3, word, len(word)))
        return found
    if adapter.name == "qwen-image":
        head, _, tail = pipe.prompt_template_encode.partition("{}")
        whole, mask = head + word + tail, text.get("encoder_hidden_states_mask")
        length = text["encoder_hidden_states"].shape[1] if mask is None else int(mask[0].sum())
        behind = len(pipe.tokenizer(whole).input_ids) - _end(pipe.tokenizer, whole, len(head + word))
        return [length - behind]  # counted from the end, since a source image's tokens stand before the word
    raise UnsupportedRuntime(
        f"where a word lies on the text axis of {adapter.model} is not known (adapter {adapter.name!r}); known: flux, "
        "sd3, qwen-image"
    )


def _end(tokenizer: Any, text: str, stop: int) -> int:
    """The token that holds the character before place `stop` of a text."""
    try:
        offsets = tokenizer(text, return_offsets_mapping=True).offset_mapping
    except NotImplementedError:
        raise UnsupportedRuntime(
            f"{type(tokenizer).__name__} does not tell which characters a token stands for; use its fast version"
        ) from None
    return next(index for index, (first, end) in enumerate(offsets) if first < stop <= end)


# ---------------------------------------------------------------------------------------------- passes


def part_of(value: Any, samples: slice, batch: int) -> Any:
    """A forward's argument for some of its samples."""
    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == batch:
        return value[samples]
    return value[samples] if isinstance(value, list) and len(value) == batch else value


def conditional_part(arguments: Arguments, guidance: Guidance) -> Arguments:
    """A forward's arguments for the samples that follow the prompt."""
    batch = len(arguments["hidden_states"])
    samples = guidance.conditional(batch)
    if samples == slice(0, batch):
        return arguments
    return {name: part_of(value, samples, batch) for name, value in arguments.items()}


def run(transformer: torch.nn.Module, arguments: Arguments, text: Arguments) -> torch.Tensor:
    """One more pass with other text: the prediction, in the form the transformer gives it."""
    return prediction(transformer.forward(**{**arguments, **text}))


def prediction(output: Any) -> torch.Tensor:
    """The tensor of a transformer's output."""
    return output[0] if isinstance(output, tuple) else output.sample


def with_prediction(output: Any, value: torch.Tensor) -> Any:
    """The same output with another tensor."""
    return (value, *output[1:]) if isinstance(output, tuple) else type(output)(sample=value)


@attrs.define
class Steps:
    """Counts steps and passes: a new noise level is a new step. `step`, `number` (of the pass) begin at 0."""

    adapter: Adapter
    step: int = -1
    number: int = 0
    sigma: float = float("nan")

    def next(self, arguments: Arguments, transformer: torch.nn.Module) -> None:
        level = float(self.adapter.time({"self": transformer, **arguments}).reshape(-1)[0])
        if level == self.sigma:
            self.number += 1
        else:
            self.step, self.number, self.sigma = self.step + 1, 0, level


Before = Callable[[Arguments], None]
After = Callable[[Arguments, Any], Any]


@contextmanager
def watching(
    transformer: torch.nn.Module, *, before: Before | None = None, after: After | None = None
) -> Iterator[None]:
    """Hooks on the transformer's calls: `before(arguments)`, and `after(arguments, output)`, whose result, unless it is
    None, takes the output's place. Passes made by `run` do not come here. Removed on leaving."""
    handles = []
    if before is not None:
        handles.append(transformer.register_forward_pre_hook(lambda m, a, k: before(bound(m, a, k)), with_kwargs=True))
    if after is not None:
        handles.append(
            transformer.register_forward_hook(lambda m, a, k, out: after(bound(m, a, k), out), with_kwargs=True)
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def generate(request: Request, **changed: Any) -> list[Any]:
    """The pipeline's images for the request's call, with some arguments changed."""
    return list(request.pipe(**{**request.call, **changed}).images)
