"""What the user holds while a model is regulated."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..adapter import Adapter
from ..errors import UVRError
from ..intercept.interceptor import Interceptor
from ..intercept.ledger import Run
from .lookup import check_looks, check_plan, fingerprint
from .plan import ConceptPlan
from .readings import Reader
from .regulation import Regulation
from .report import Report
from .source import Known


class _Thread(threading.local):
    """What one thread's last generation told. It goes with the regulator."""

    report: Report | None = None


class Regulator:
    """A model under regulation. Made by `attach`; use as a context manager or call `detach`.

    Attributes:
        adapter: the Adapter in force.
        taps: paths of the joint attention blocks, in order of execution.
        plan: one ConceptPlan per concept, in order of rank.
        escalation: the plans by which an image in which a concept still stands is drawn again.
        fingerprint: what concept banks must have been made for.
        last_grid: (H, W) of the output patches in the last finished generation.
    """

    def __init__(
        self,
        model: Any,
        transformer: nn.Module,
        adapter: Adapter,
        plan: Sequence[ConceptPlan],
        escalation: Sequence[Sequence[ConceptPlan]] = (),
    ):
        self.adapter, self.plan, self.escalation = adapter, tuple(plan), tuple(map(tuple, escalation))
        modules = adapter.taps(transformer)
        self.taps = tuple(modules)
        self.fingerprint = fingerprint(transformer, modules)
        for concept in self.plan:
            check_plan(concept, self.fingerprint, self.taps)
        self._bare = model is transformer
        check_looks(self.plan, adapter, None if self._bare else model)
        self._known = Known()
        self._thread = _Thread()
        self._last_report: Report | None = None
        self.last_grid: tuple[int, int] | None = None
        self._reader: Reader | None = None
        self._read_taps: frozenset[str] = frozenset()
        self._after = False
        pipeline = None if self._bare else model
        single = self._bare and not self.plan  # nothing is looked for, so nothing hangs on where a generation begins
        self._interceptor = Interceptor(transformer, adapter, self._begin, pipeline, single)
        self.attached = True

    def detach(self) -> None:
        """Restore the model and pipeline exactly. Idempotent."""
        self._interceptor.remove()
        self.attached = False

    def __enter__(self) -> Regulator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.detach()

    @property
    def report(self) -> Report | None:
        """What ran: the last generation of this thread, else of any; None before the first, and if it broke off.

        Attached to a bare transformer, inside `generation()`: the generation in progress.
        """
        regulation = self._interceptor.intervention
        if self._bare and isinstance(regulation, Regulation):
            return regulation.report("incomplete")
        return self._thread.report or self._last_report

    @contextmanager
    def generation(self, scheduler: Any = None) -> Iterator[None]:
        """One generation of a bare transformer, driven by hand; verified when the block ends.

            with reg.generation(scheduler):
                for t in scheduler.timesteps: ...

        Nobody can withhold what a forward gave, so whatever is wrong raises at once, or at the end of the block: what
        was drawn in a block that raised must not be used. One generation at a time and thread. No pipeline says which
        forward, or which half of a batch, follows the prompt: all are regulated, but for forwards inside
        `transformer.cache_context("uncond")`.

        Args:
            scheduler: its calls of `step` are the generation's steps; None: each new noise level is one.

        Raises:
            UVRError: attached to a pipeline, whose calls are the generations; a concept was never looked for; an edit
                gave NaN or Inf.
            UnsupportedRuntime: this thread is in a generation already.
            TapNotFired: the steps, forwards or taps do not add up.
        """
        if not self._bare:
            raise UVRError("attached to a pipeline: call the pipeline; its calls are the generations")
        with self._interceptor.generation(scheduler):
            yield

    @contextmanager
    def recording(self, reader: Reader, taps: Sequence[str] = (), *, after: bool = False) -> Iterator[None]:
        """Hand joint calls to `reader(call)` in generations begun meanwhile.

        Args:
            reader: called with the JointCall of the rows that follow the prompt; what it may be asked is in
                `uvr_core.engine.readings`.
            taps: paths of the blocks whose calls it gets; none: all.
            after: as the edits left their output; else before anything is changed in them.
        """
        self._reader, self._read_taps, self._after = reader, frozenset(taps or self.taps), after
        try:
            yield
        finally:
            self._reader, self._read_taps, self._after = None, frozenset(), False

    def _begin(self, run: Run) -> Regulation:
        self._keep_report(None)  # a call that breaks off must not show what an earlier one located
        reader = (self._reader, self._read_taps, self._after)
        return Regulation(run, self.adapter, self.plan, self._handed_out, *reader, self.escalation, known=self._known)

    def _handed_out(self, report: Report, grid: tuple[int, int] | None) -> None:
        self._keep_report(report)
        self.last_grid = grid or self.last_grid

    def _keep_report(self, report: Report | None) -> None:
        self._thread.report = report
        self._last_report = report
