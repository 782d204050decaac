"""A pipeline's call: opens a run, hears the names of guidance parts, and hands out what a verified run gives."""

from __future__ import annotations

import functools
import os
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedRuntime
from ..signatures import arguments_of, images_of, seeds_of
from .ahead import devices
from .current import Current
from .hooks import uncopyable
from .intervention import Again, Ahead, Begin, Intervention
from .ledger import Run
from .replay import Replay
from .runtime import uncompiled

_CALLBACKS = ("callback_on_step_end", "callback")


class PartNames:
    """Hears the names that pipelines give to guidance parts: `with transformer.cache_context("cond")`."""

    def __init__(self, transformer: nn.Module, current: Current):
        self._transformer, self._current = transformer, current
        self._named: Any = None

    def wrap(self) -> None:
        """Put our cache_context over the stock one, on this instance; nothing if it has none."""
        stock, current = getattr(self._transformer, "cache_context", None), self._current
        if stock is None or "cache_context" in self._transformer.__dict__:
            return

        @contextmanager
        def cache_context(name: str, **options: Any) -> Iterator[None]:
            token = current.part.set(name)
            try:
                with stock(name, **options):
                    yield
            finally:
                current.part.reset(token)

        self._named = self._transformer.__dict__["cache_context"] = cache_context

    def remove(self) -> None:
        """Take ours off, unless somebody replaced it. Idempotent."""
        if self._named is not None and self._transformer.__dict__.get("cache_context") is self._named:
            del self._transformer.__dict__["cache_context"]
        self._named = None


class _Apart:
    """A callback, called outside of any run."""

    def __init__(self, callback: Callable[..., Any], current: Current):
        self._callback, self._current = callback, current

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = self._current.set(None)
        try:
            return self._callback(*args, **kwargs)
        finally:
            self._current.reset(token)


@contextmanager
def counted_steps(scheduler: Any, current: Current) -> Iterator[None]:
    """Every `scheduler.step` meanwhile ends a step of the run that this thread is in.

    The instance gets a subclass of its class, so that a copy of it counts as well.

    Raises:
        UnsupportedRuntime: it has no `step`.
    """
    stock: Any = type(scheduler)
    if not callable(getattr(stock, "step", None)):
        raise UnsupportedRuntime(
            f"a scheduler of class {stock.__name__} has no step() whose calls could be counted: UVR cannot tell "
            "whether every step was regulated; take one of diffusers', or detach UVR"
        )

    @functools.wraps(stock.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = stock.step(self, *args, **kwargs)
        if (intervention := current.get()) is not None:
            intervention.run.end_step()
        return result

    counting = _standing_for(stock, {"step": step, "__module__": stock.__module__})
    scheduler.__class__ = counting
    try:
        yield
    finally:
        if type(scheduler) is counting:
            scheduler.__class__ = stock


def _standing_for(stock: type, body: dict[str, Any]) -> type:
    """A subclass that equals its base: a pipeline may compare its scheduler's class with one by name (Bria)."""
    kind: Any = type(stock)
    same = {"__eq__": lambda cls, other: other is cls or other is stock, "__hash__": lambda cls: hash(stock)}
    subclass: type = type(kind.__name__, (kind,), same)(stock.__name__, (stock,), body)
    return subclass


class PipelineCall:
    """The call of one pipeline instance: a subclass of its own class, with `__call__` around the stock one.

    Args:
        pipeline: a diffusers pipeline.
        transformer: the one that is tapped.
        taps: paths of the tapped modules.
        current: the run of each thread.
        begin: makes the intervention of a run.
    """

    def __init__(self, pipeline: Any, transformer: nn.Module, taps: tuple[str, ...], current: Current, begin: Begin):
        self._pipeline, self._transformer, self._taps = pipeline, transformer, taps
        self._current, self._begin = current, begin
        self._generating, self._process = threading.Lock(), os.getpid()
        self._stock: type | None = None

    def wrap(self) -> None:
        """Change the instance's class."""
        stock, call = type(self._pipeline), self

        @torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
        @functools.wraps(stock.__call__)
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            with call._alone():
                return call._generate(stock, args, kwargs)

        def __reduce_ex__(self: Any, protocol: object) -> str:
            raise uncopyable()

        body = {
            "__call__": __call__,
            "__reduce_ex__": __reduce_ex__,
            "__module__": stock.__module__,
            "__qualname__": stock.__qualname__,
        }
        self._stock = stock  # before the swap: a signal between the two must not leave what nobody can undo
        self._pipeline.__class__ = type(stock.__name__, (stock,), body)

    def remove(self) -> None:
        """Give the instance its class back. Idempotent."""
        if self._stock is not None:
            self._pipeline.__class__ = self._stock
            self._stock = None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One call of the pipeline at a time."""
        if not self._generating.acquire(blocking=False):
            if self._process != os.getpid():
                raise UnsupportedRuntime(
                    "this process was forked while another thread was generating with this pipeline, which therefore "
                    "stands in the middle of that call for ever; detach and attach again here, or fork between "
                    "generations"
                )
            raise UnsupportedRuntime(
                "the pipeline is called while another call of it runs; a diffusers pipeline keeps the state of its "
                "call on itself: make a pipeline per thread around the one transformer, each with a scheduler and "
                "tokenizers of its own, attach to the transformer, and draw inside "
                "`with reg.generation(pipe.scheduler):`"
            )
        self._process = os.getpid()
        try:
            yield
        finally:
            self._generating.release()

    def _apart(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments, with callbacks that are outside of the run: what they draw is no part of it."""
        callbacks = {name: kwargs[name] for name in _CALLBACKS if isinstance(kwargs.get(name), types.FunctionType)}
        return {
            **kwargs,
            **{name: functools.wraps(call)(_Apart(call, self._current)) for name, call in callbacks.items()},
        }

    def _generate(self, stock: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call, and those again that interventions ask for."""
        begin, replay = self._begin, None
        seeds, images = seeds_of(stock, args, kwargs), images_of(stock, args, kwargs)
        while True:
            run = Run(self._taps, scheduled=True, scheduler=self._pipeline.scheduler)
            intervention = begin(run)
            run.seeds, run.images = seeds, images
            if (ahead := intervention.ahead(arguments_of(stock, args, kwargs))) is not None:
                self._call_ahead(stock, ahead)
            if replay is not None:
                args, kwargs = replay.again()
            elif intervention.repeats:
                replay = Replay.of(stock, args, kwargs)
            result = self._one(stock, args, kwargs, intervention)
            if not isinstance(result, Again):
                return result
            begin = result.begin

    def _call_ahead(self, stock: Any, ahead: Ahead) -> None:
        """A call in a run of its own, which leaves no trace in any random state; what it draws goes nowhere."""
        run, arguments = Run(self._taps, scheduled=True), dict(ahead.arguments)
        run.images = images_of(stock, (), arguments)
        with torch.random.fork_rng(devices()):
            self._one(stock, (), arguments, ahead.begin(run))

    def _one(self, stock: Any, args: tuple[Any, ...], kwargs: dict[str, Any], intervention: Intervention) -> Any:
        pipeline = self._pipeline
        if uncompiled(pipeline.transformer) is not self._transformer:
            raise UnsupportedRuntime(
                "the pipeline's transformer was replaced after attach by another one; detach and attach again"
            )
        token = self._current.set(intervention)
        try:
            with counted_steps(pipeline.scheduler, self._current):
                result = stock.__call__(pipeline, *args, **self._apart(kwargs))
            intervention.run.verify()
            return intervention.on_end(result)
        except BaseException as error:
            intervention.on_error(error)
            raise
        finally:
            self._current.reset(token)
