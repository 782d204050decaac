"""check_baseline: a baseline on a pipeline of yours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image

from ..errors import UnsupportedRuntime
from ..protocols import Baseline, Request
from .suite import Conformance, checks_of, expect, refuse_name, run_checks, skip_unless


class _Stop(Exception):
    """Raised inside a generation, to see what is left behind."""


def check_baseline(
    baseline: Baseline, make: Callable[[], Request], *, expected_failures: Mapping[str, str] | None = None
) -> Conformance:
    """Hold a baseline against the protocol, on one pipeline.

    A pipeline that it refuses (UnsupportedRuntime) is in order: the checks of generating are then skipped.

    Args:
        baseline: the baseline.
        make: () -> Request, equal each time: the same prompts, generators of the same seeds, made anew. The pipeline
            may be the same object. About six generations run: a few steps are enough, three at least.
        expected_failures: {check: reason}. The checks: protocol, one-per-prompt, same-seeds, follows-seeds,
            no-global-random, request-unchanged, pipeline-unchanged, unchanged-after-an-error.

    Raises:
        ConformanceError: a check failed, or an expected failure did not; all are listed, and `report` holds them.
        UVRError: `expected_failures` names no check, or `baseline` is a name or a class.
    """
    refuse_name("baseline", baseline)
    first = make()
    suite = _Suite(baseline, make, first.pipe, _snapshot(first.pipe), _stock(first))
    name = getattr(baseline, "name", type(baseline).__name__)
    with torch.random.fork_rng(devices=[]):
        return run_checks(f"baseline {name!r}", checks_of(suite), expected_failures)


@attrs.frozen(eq=False)
class _Suite:
    """`clean`, `images`: what the pipeline was, and gave, before the baseline first ran."""

    baseline: Baseline
    make: Callable[[], Request]
    pipe: Any
    clean: dict[str, Any]
    images: list[bytes | None]

    def _generate(self, request: Request | None = None) -> Sequence[Any]:
        try:
            return self.baseline.generate(request or self.make())
        except UnsupportedRuntime as refusal:
            expect(str(refusal), "message of UnsupportedRuntime", expected="why", got="nothing")
            skip_unless(False, f"it refuses the pipeline: {refusal}")
            raise

    def _before(self, request: Request) -> dict[str, Any]:
        return self.clean if request.pipe is self.pipe else _snapshot(request.pipe)

    def protocol(self) -> None:
        method = getattr(self.baseline, "generate", None)
        expect(callable(method), "generate", expected="a method", got=method)
        inspect.signature(self.baseline.generate).bind(object())
        try:
            type(self.baseline)()
        except TypeError as error:
            expect(False, "its class", expected="made without arguments", got=str(error))

    def one_per_prompt(self) -> None:
        request = self.make()
        images = self._generate(request)
        expect(len(images) == request.batch, "images", expected=request.batch, got=len(images))
        for index, image in enumerate(images):
            picture = image is None or isinstance(image, Image.Image)
            expect(picture, f"image {index}", expected="a PIL image or None", got=type(image).__name__)

    def same_seeds(self) -> None:
        runs = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            runs.append(_bytes(self._generate()))
        expect(runs[0] == runs[1], "images of the same request, twice", expected="bitwise the same", got="others")

    def follows_seeds(self) -> None:
        before, request = self._generate(), self.make()
        moved = [torch.Generator(g.device).manual_seed(g.initial_seed() + 1) for g in request.call["generator"]]
        after = self._generate(attrs.evolve(request, call={**request.call, "generator": moved}))
        both = [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]
        skip_unless(both, "it gave no image to compare")
        same = [i for i, (a, b) in enumerate(both) if _bytes([a]) == _bytes([b])]
        expect(not same, "images of other seeds", expected="others", got=f"the same for images {same}")

    def no_global_random(self) -> None:
        state = torch.random.get_rng_state()
        self._generate()
        got = "advanced: the generators of the call decide all noise"
        expect(torch.equal(state, torch.random.get_rng_state()), "global random state", expected="unused", got=got)

    def request_unchanged(self) -> None:
        request = self.make()
        before = {k: list(v) if isinstance(v, list) else v for k, v in request.call.items()}
        self._generate(request)
        now = dict(request.call)
        kept = {k for k in before if k in now and _equal(before[k], now[k])}
        changed = sorted({*before, *now} - kept)
        expect(not changed, "arguments changed in the request", expected="none", got=", ".join(changed))

    def pipeline_unchanged(self) -> None:
        request = self.make()
        before = self._before(request)
        self._generate(request)
        self._expect_stock(before, request.pipe, "generating")

    def unchanged_after_an_error(self) -> None:
        request = self.make()
        parameters = inspect.signature(type(request.pipe).__call__).parameters
        skip_unless("callback_on_step_end" in parameters, "the pipeline takes no callback in which to raise")

        def stop(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
            if step >= 1:
                raise _Stop("raised by the check after the second step")
            return {}

        before = self._before(request)
        try:
            self._generate(attrs.evolve(request, call={**request.call, "callback_on_step_end": stop}))
        except _Stop:
            pass
        else:
            skip_unless(False, "it ended without running the pipeline's second step")
        self._expect_stock(before, request.pipe, "an error")

    def _expect_stock(self, before: dict[str, Any], pipe: Any, event: str) -> None:
        after = _snapshot(pipe)
        changed = [name for name in sorted({*before, *after}) if not _same(before.get(name), after.get(name))]
        got = f"changed: {', '.join(changed[:5])}"
        expect(not changed, f"the pipeline after {event}", expected="as before", got=got)
        same = _stock(self.make()) == self.images
        expect(same, f"stock images after {event}", expected="bitwise as before", got="others")


def _bytes(images: Sequence[Any]) -> list[bytes | None]:
    return [None if image is None else image.tobytes() for image in images]


def _stock(request: Request) -> list[bytes | None]:
    return _bytes(request.pipe(**request.call).images)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(a is b or _equal(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, (torch.Tensor, np.ndarray)):
        return one is other
    return one is other or bool(one == other)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_always_called")
_PATCHED = ("forward", "__call__", "processor", "cache_context")  # what a module may be given for itself


def _snapshot(pipe: Any) -> dict[str, Any]:
    """What of a pipeline may be left changed: classes, components, hooks, processors, weights."""
    state: dict[str, Any] = {"class of the pipeline": type(pipe)}
    for name in ("__call__", "encode_prompt", "_progress_bar_config"):
        state[f"{name} of the pipeline"] = vars(pipe).get(name)
    for part, component in pipe.components.items():
        state[f"component {part}"] = id(component)
        state[f"class of {part}"] = type(component)
        if not isinstance(component, torch.nn.Module):
            continue
        for path, module in component.named_modules():
            where = f"{part}.{path}".rstrip(".")
            state[f"class of {where}"] = type(module)
            for name in _HOOKS:
                state[f"{name} of {where}"] = tuple(map(id, getattr(module, name, {}).values()))
            for name in _PATCHED:
                if name in vars(module):
                    state[f"{name} of {where}"] = (id(vars(module)[name]), type(vars(module)[name]))
        for name, tensor in component.state_dict().items():
            state[f"{part}.{name}"] = tensor.detach().clone()
    return state


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        return torch.equal(old, new)
    return bool(old == new)
