"""A pipeline's call: opens a run, hears the names of guidance parts, and hands out what a verified run gives."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..errors import UnsupportedRuntime
from ..signatures import seeds_of
from .current import Current
from .hooks import uncopyable
from .intervention import Begin
from .ledger import Run


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
        self._generating = threading.Lock()
        self._stock: type | None = None

    def wrap(self) -> None:
        """Change the instance's class."""
        stock, call = type(self._pipeline), self

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
        self._pipeline.__class__ = type(stock.__name__, (stock,), body)
        self._stock = stock

    def remove(self) -> None:
        """Give the instance its class back. Idempotent."""
        if self._stock is not None:
            self._pipeline.__class__ = self._stock
            self._stock = None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One call of the pipeline at a time."""
        if not self._generating.acquire(blocking=False):
            raise UnsupportedRuntime(
                "the pipeline is called while another call of it runs; a diffusers pipeline keeps the state of its "
                "call on itself: make a pipeline per thread around the one transformer, each with a scheduler and "
                "tokenizers of its own, and attach to the transformer"
            )
        try:
            yield
        finally:
            self._generating.release()

    def _generate(self, stock: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pipeline = self._pipeline
        run = Run(self._taps)
        intervention = self._begin(run)
        run.seeds = seeds_of(stock, args, kwargs)
        if pipeline.transformer is not self._transformer:
            raise UnsupportedRuntime(
                "the pipeline's transformer was replaced after attach (by another one, or by torch.compile of it); "
                "detach and attach again, to an uncompiled one"
            )
        token = self._current.set(intervention)
        try:
            result = stock.__call__(pipeline, *args, **kwargs)
            expected = getattr(pipeline, "_num_timesteps", None)
            run.verify(int(len(pipeline.scheduler.timesteps) if expected is None else expected))
            return intervention.on_end(result)
        except BaseException as error:
            intervention.on_error(error)
            raise
        finally:
            self._current.reset(token)
