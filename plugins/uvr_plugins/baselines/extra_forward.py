"""What the baselines that look into the transformer share: guidance, one more forward, hooks on the forward.

Nothing here names a model family; it is read from the adapter and from what the pipeline hands its transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import attrs
import torch

from uvr_core.adapter import Adapter
from uvr_core.engine.lookup import find_adapter
from uvr_core.errors import UnsupportedRuntime
from uvr_core.protocols import Request
from uvr_core.signatures import default_of, forward_arguments

Arguments = dict[str, Any]


def adapter_of(pipe: Any) -> Adapter:
    """The adapter of the pipeline's transformer.

    Raises:
        UnsupportedRuntime: the pipeline has no transformer.
        AdapterNotFound: no adapter recognises it.
    """
    if getattr(pipe, "transformer", None) is None:
        raise UnsupportedRuntime(f"{type(pipe).__name__} has no transformer: this baseline acts inside one")
    return find_adapter(pipe.transformer)


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


def bound(transformer: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
    """A forward's arguments by name."""
    arguments = forward_arguments(transformer, args, kwargs)
    arguments.pop("self", None)
    return arguments


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
