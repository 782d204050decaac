"""Puts taps, root hooks and the pipeline's wrapper on a model, and takes them off bitwise."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..adapter import Adapter
from .current import Current
from .forwards import Forwards
from .intervention import Begin, Intervention
from .pipeline import PartNames, PipelineCall
from .taps import Taps


class Interceptor:
    """A model whose joint attention is seen. The interventions of its runs say what happens there.

    Args:
        transformer: the model.
        adapter: what is known about it.
        begin: makes the intervention of each run.
        pipeline: what drives the transformer; None: it is driven by hand.

    Raises:
        AdapterMismatch: the adapter's patterns match no module.
        UnsupportedRuntime: an attention processor that cannot be seen through, or a model that is tapped already.
            Nothing was changed.
    """

    def __init__(self, transformer: nn.Module, adapter: Adapter, begin: Begin, pipeline: Any = None):
        current = Current()
        self._current = current
        self.forwards = Forwards(transformer, adapter, current, pipeline, begin)
        self._part_names = PartNames(transformer, current)
        self._call = None
        self.taps = Taps(
            adapter.taps(transformer),
            self.forwards.observe,
            entered=self.forwards.entered,
            left=self.forwards.left,
        )
        try:
            self.forwards.register()
            self._part_names.wrap()
            if pipeline is not None:
                self._call = PipelineCall(pipeline, transformer, self.forwards.taps, current, begin)
                self._call.wrap()
        except BaseException:
            self.remove()
            raise

    @property
    def intervention(self) -> Intervention | None:
        """What is in force in this thread's run."""
        return self._current.get()

    def forget(self) -> None:
        """End this thread's run of a bare transformer."""
        self._current.set(None)

    def remove(self) -> None:
        """Restore the model and pipeline exactly. Idempotent."""
        if self._call is not None:
            self._call.remove()
        self._part_names.remove()
        self.forwards.remove()
        self.taps.remove()
