"""Puts taps, root hooks and the pipeline's wrapper on a model, and takes them off bitwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn

from ..adapter import Adapter
from ..errors import UnsupportedRuntime
from .caches import Caches
from .current import Current
from .forwards import Forwards
from .intervention import Begin, Intervention
from .ledger import Run
from .pipeline import PartNames, PipelineCall, counted_steps
from .taps import Taps


class Interceptor:
    """A model whose joint attention is seen. The interventions of its runs say what happens there.

    Args:
        transformer: the model.
        adapter: what is known about it.
        begin: makes the intervention of each run.
        pipeline: what drives the transformer; None: it is driven by hand.
        single: a forward outside of any run is a run of its own, and not refused.

    Raises:
        AdapterMismatch: the adapter's patterns match no module.
        UnsupportedRuntime: an attention processor that cannot be seen through, or a model that is tapped already.
            Nothing was changed.
    """

    def __init__(
        self, transformer: nn.Module, adapter: Adapter, begin: Begin, pipeline: Any = None, single: bool = False
    ):
        current = Current()
        self._current, self._begin = current, begin
        self.forwards = Forwards(transformer, adapter, current, pipeline, begin if single else None)
        self._part_names = PartNames(transformer, current)
        self._caches = Caches(self.forwards.along, current)
        self._call = None
        self.taps = Taps(
            adapter.taps(transformer),
            self.forwards.observe,
            entered=self.forwards.entered,
            left=self.forwards.left,
        )
        try:  # a signal may come at any line: what is to be undone is noted before it is done
            self.taps.seat()
            self.forwards.register(self._prepare)
            self._part_names.wrap()
            if pipeline is not None:
                self._call = PipelineCall(pipeline, transformer, self.forwards.taps, current, begin)
                self._call.wrap()
        except BaseException:
            self.remove()
            raise

    def _prepare(self) -> None:
        """Before each forward: what was put in our place, or switched on, since the last one."""
        self.taps.reseat()
        self._caches.wrap()

    @property
    def intervention(self) -> Intervention | None:
        """What is in force in this thread's run."""
        return self._current.get()

    @contextmanager
    def generation(self, scheduler: Any = None) -> Iterator[None]:
        """One run of a transformer that is driven by hand, verified when it ends.

        Args:
            scheduler: its calls of `step` end the run's steps; None: a new noise level begins a step.

        Raises:
            UnsupportedRuntime: this thread is in a run already.
        """
        if self._current.get() is not None:
            raise UnsupportedRuntime(
                "a generation began inside another one of this thread; let each end before the next begins, or run "
                "them in threads of their own"
            )
        run = Run(self.forwards.taps, bare=True, scheduled=scheduler is not None, scheduler=scheduler)
        intervention = self._begin(run)
        token = self._current.set(intervention)
        try:
            with nullcontext() if scheduler is None else counted_steps(scheduler, self._current):
                yield
            intervention.run.verify()
            intervention.on_end(None)
        except BaseException as error:
            intervention.on_error(error)
            raise
        finally:
            self._current.reset(token)

    def remove(self) -> None:
        """Restore the model and pipeline exactly. Idempotent."""
        if self._call is not None:
            self._call.remove()
        self._part_names.remove()
        self._caches.remove()
        self.forwards.remove()
        self.taps.remove()
