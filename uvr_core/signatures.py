"""What can be called how, read from signatures: a pipeline's call, a model's forward, the making of a class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def call_of(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """The arguments of a pipeline's call, by name and in order, without `self`."""
    return dict(list(inspect.signature(type(pipe).__call__).parameters.items())[1:])


def takes(pipe: Any, name: str) -> bool:
    """Whether a pipeline's call has an argument of that name."""
    return name in call_of(pipe)


def default_of(pipe: Any, name: str) -> Any:
    """The default of an argument of a pipeline's call; None if it has no such argument."""
    parameter = call_of(pipe).get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def takes_source(pipe: Any) -> bool:
    """Whether a pipeline's call takes a source picture."""
    return takes(pipe, "image")


def needs_source(pipe: Any) -> bool:
    """Whether a pipeline edits, and so draws nothing without one: the picture comes first, and there is no strength."""
    parameters = list(call_of(pipe))
    return parameters[:1] == ["image"] and "strength" not in parameters


def seeds_of(pipeline_class: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """The seeds of the generators that a pipeline's call is given, whatever way; (0,) without any."""
    bound = arguments_of(pipeline_class, args, kwargs)
    generators = bound.get("generator")
    if generators is None:
        return (0,)
    each = generators if isinstance(generators, (list, tuple)) else [generators]
    return tuple(generator.initial_seed() for generator in each)


def images_of(pipeline_class: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """How many images a pipeline's call is asked for: prompts, or embeddings of them, times images of each; None: the
    call does not say."""
    bound = arguments_of(pipeline_class, args, kwargs)
    prompts = bound.get("prompt")
    if prompts is None:  # pooled first: some models' embeddings begin with an axis of layers
        names = sorted(name for name in bound if name.startswith(("pooled_prompt_embeds", "prompt_embeds")))
        prompts = next((bound[name] for name in names if bound[name] is not None), None)
    if prompts is None or not hasattr(prompts, "__len__"):
        return None
    count = bound.get("num_images_per_prompt")
    return (1 if isinstance(prompts, str) else len(prompts)) * (1 if count is None else int(count))


def arguments_of(pipeline_class: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a pipeline's call by name, defaults included; of a modular pipeline, what its blocks are given,
    beneath it what a state handed on holds. None of a call that will fail: its own error is the one to show."""
    try:
        bound = inspect.signature(pipeline_class.__call__).bind_partial(None, *args, **kwargs)
    except TypeError:
        return {}
    bound.apply_defaults()
    state = getattr(bound.arguments.get("state"), "values", None)
    return {**(state if isinstance(state, dict) else {}), **bound.arguments, **bound.kwargs}


def forward_arguments(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's forward is given, by name, `self` included.

    Raises:
        TypeError: the forward takes no such arguments.
    """
    return inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments


def required(factory: Callable[..., Any]) -> list[str]:
    """Names of the arguments without which something cannot be called, a class not be made."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some builtins carry no signature
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]
