"""A small version of a model class of diffusers, with random weights, that runs."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import UVRError, did_you_mean
from .example import Example
from .inputs import TinyInputs, time_scale
from .source import by_hand, pipelines_of

HEADS, HEAD_DIMS, WIDTH = 2, (16, 24, 32, 64), 32


def model_class(name: str) -> type[nn.Module]:
    """The model class of diffusers with that name.

    Raises:
        UVRError: there is none.
    """
    import diffusers

    cls = getattr(diffusers, name, None)
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        known = [n for n in dir(diffusers) if n.endswith("Model") and "Transformer" in n]
        hint = did_you_mean(name, known)
        close = hint if "did you mean" in hint else ""
        raise UVRError(f"diffusers {diffusers.__version__} has no model class {name!r}{close}")
    return cls


def shrink(
    cls: type[nn.Module], config: Mapping[str, Any] | None = None, head_dim: int = HEAD_DIMS[0]
) -> dict[str, Any]:
    """Constructor arguments of a small version: two blocks of a kind, two heads, narrow.

    Args:
        cls: a model class of diffusers.
        config: arguments to start from where they differ from the constructor's defaults (a checkpoint's config).
        head_dim: of the joint attention.
    """
    parameters = list(inspect.signature(inspect.unwrap(cls.__init__)).parameters.values())[1:]
    known = {p.name: p.default for p in parameters if p.default is not p.empty}
    known |= {k: v for k, v in (config or {}).items() if k in {p.name for p in parameters}}
    heads = next((known[n] for n in ("num_attention_heads", "n_heads", "num_heads") if n in known), 0)
    width = next((known[n] for n in ("hidden_size", "dim") if n in known), None)
    size = known.get("attention_head_dim") or (width // heads if width and heads else 0)
    return {name: _small(name, value, heads, size, head_dim) for name, value in known.items()}


def _small(name: str, value: Any, heads: int, size: int, head_dim: int) -> Any:
    if isinstance(value, (list, tuple)) and "dual" in name:
        return type(value)(v for v in value if v < 1)
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
        return type(value)(_axes(value, head_dim)) if sum(value) == size else value
    if not isinstance(value, int) or isinstance(value, bool) or value == 0:
        return value
    if re.search(r"(layers|blocks|depth)$", name):
        return min(value, 1 if re.search("refiner|text|approximator", name) else 2)
    if re.search(r"(kv|key_value)_heads$", name):
        return HEADS if value == heads else 1
    if re.search(r"heads$", name):
        return HEADS
    if name == "attention_head_dim":
        return head_dim
    if value == heads * size:
        return HEADS * head_dim
    if re.search("experts$", name):
        return min(value, 4)
    if value > WIDTH and re.search(r"(?<!axes_)dim$|hidden_size$|intermediate_size$", name):
        return WIDTH
    return value


def _axes(axes: Sequence[int], head_dim: int) -> list[int]:
    """Rotary axes, even, in about the same proportion, that sum to head_dim."""
    small = [max(2, 2 * (head_dim * axis // (2 * sum(axes)))) for axis in axes]
    small[-1] += head_dim - sum(small)
    return small


class ZeroedMemory(TorchFunctionMode):
    """torch.empty gives zeros in this thread: a parameter that a class never fills is told by being zero.

    Classes that are only ever loaded leave some so (`x_pad_token` of Z-Image in diffusers 0.38); what memory happens
    to hold there may be NaN.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        return returned.zero_() if func is torch.empty else returned


def _build(cls: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    """A model in eval mode whose weights are random, those included that the class sets to zero or never fills."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        with ZeroedMemory():
            model = cls(**config).eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.any():
                continue
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            elif parameter.numel() == 1:  # a gate that is learned to open
                parameter.fill_(0.5)
    finally:
        torch.random.set_rng_state(state)
    return model


def small_model(cls: type[nn.Module], config: Mapping[str, Any] | None = None) -> TinyInputs:
    """A small version of a class that runs, and its forward arguments, the time argument's scale found out.

    Raises:
        UVRError: none was found; says what each attempt met.
    """
    met: dict[str, list[int]] = {}
    pipelines = pipelines_of(cls.__name__)
    passed = (pipelines.passes, frozenset[str]()) if pipelines.passes else (pipelines.passes,)
    for head_dim, passes in itertools.product(HEAD_DIMS, passed):  # a mask over more than the text does not fit
        try:
            small = shrink(cls, config, head_dim)
            inputs = TinyInputs(_build(cls, small), small, passes=passes, flat=pipelines.flat)
            size = (2, 3)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                output = Example(inputs.model, inputs).run(inputs(*size, batch=2), size)
            if output.shape[:2] != (2, 6) or not bool(torch.isfinite(output).all()):
                raise ValueError(f"an output of shape {tuple(output.shape)} for 2 samples of 6 patches")
            thousand = not pipelines.clean and 0 < time_scale(inputs) < 30
            return attrs.evolve(inputs, scale=1000.0 if thousand else 1.0, clean=pipelines.clean)
        except UVRError:
            raise
        except Exception as error:  # whatever the class makes of made-up arguments
            first = (str(error).splitlines() or [""])[0]
            met.setdefault(f"{type(error).__name__}: {first}", []).append(head_dim)
    tried = "; ".join(f"{what} (heads of {', '.join(map(str, dict.fromkeys(sizes)))})" for what, sizes in met.items())
    raise UVRError(f"no small version of {cls.__name__} runs; {by_hand(cls)}. Met: {tried}")


def example_of(inputs: TinyInputs) -> Example:
    """An Example on a fresh copy of a small model."""
    fresh = attrs.evolve(inputs, model=_build(type(inputs.model), inputs.config))
    guidance = pipelines_of(type(fresh.model).__name__).guidance or None
    references = fresh.kind in ("ids", "shapes") and _takes_references(fresh)
    return Example(fresh.model, fresh, references=references, ragged=fresh.ragged, guidance=guidance)


def tiny_example(cls: str | type[nn.Module], config: Mapping[str, Any] | None = None) -> Example:
    """An Example of a diffusers class, made up from the names of its arguments.

    Raises:
        UVRError: no such class, or no small version of it runs.
    """
    return example_of(small_model(model_class(cls) if isinstance(cls, str) else cls, config))


def _takes_references(inputs: TinyInputs) -> bool:
    if inputs.flat:
        return False
    try:
        Example(inputs.model, inputs).run(inputs(2, 3, references=((3, 2), (2, 2))), (2, 3))
    except Exception:  # whatever the class makes of more image tokens
        return False
    return True
