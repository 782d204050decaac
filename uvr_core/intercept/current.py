"""Which run, and which named guidance part, this thread is in."""

from __future__ import annotations

import contextvars
import threading

from .intervention import Intervention


class Current:
    """The intervention of the run that this thread is in, and the name of the guidance part that it is in.

    A context may be a copy of another thread's (asyncio.to_thread), and with it the run in there: such a run is not
    this thread's.
    """

    def __init__(self) -> None:
        self._intervention: contextvars.ContextVar[Intervention | None] = contextvars.ContextVar(
            "uvr_intervention", default=None
        )
        self.part: contextvars.ContextVar[str | None] = contextvars.ContextVar("uvr_part", default=None)

    def get(self) -> Intervention | None:
        """What is in force in this thread."""
        intervention = self._intervention.get()
        return intervention if intervention is not None and intervention.run.thread == threading.get_ident() else None

    def set(self, intervention: Intervention | None) -> contextvars.Token[Intervention | None]:
        """Put an intervention in force; returns the token that `reset` takes."""
        return self._intervention.set(intervention)

    def reset(self, token: contextvars.Token[Intervention | None]) -> None:
        """Back to what was in force before."""
        self._intervention.reset(token)
