"""The door between the halves: what an Interceptor tells of a run, and what may be done in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

from .calls import JointCall
from .ledger import Forward, Run

Begin = Callable[[Run], "Intervention"]


@attrs.frozen
class Again:
    """What `on_end` gives to have the pipeline called once more, with the same noise, under another intervention."""

    begin: Begin


@attrs.frozen
class Ahead:
    """A call of the pipeline that is to be made before the one that was asked for; see uvr_core.intercept.ahead.

    Attributes:
        arguments: keyword arguments.
        begin: makes the intervention of its run.
    """

    arguments: Mapping[str, Any]
    begin: Begin


class Intervention:
    """What happens inside one Run. This one does nothing; subclasses override what they need.

    Attributes:
        run: the run.
        sees_uncond: whether `on_call` is also called for parts that do not follow the prompt.
        repeats: whether `on_end` may ask for the call again.
    """

    sees_uncond = False
    repeats = False

    def __init__(self, run: Run):
        self.run = run

    def ahead(self, arguments: Mapping[str, Any]) -> Ahead | None:
        """What is to be called before the pipeline, whose call's arguments these are, by name; None: nothing."""
        return None

    def on_forward(self, forward: Forward) -> None:
        """A forward begins."""

    def idle(self, tap: str) -> bool:
        """Whether `on_call` would neither read nor edit the open forward's call at that tap: then it is spared."""
        return False

    def reusable(self, forward: Forward) -> bool:
        """Whether a step cache may serve the rest of a forward from joint calls that were edited as these would be."""
        return False

    def on_call(self, call: JointCall) -> torch.Tensor | None:
        """A joint call has run.

        Returns:
            (b, H, Sq, D), the output to go on with in its rows; None: as it is, rows written in place included.
        """
        return None

    def on_forward_end(self, forward: Forward) -> None:
        """Every tap of a forward has fired."""

    def on_end(self, result: Any) -> Any:
        """The pipeline returned `result`, and the run is verified. Returns what is handed out, or Again."""
        return result

    def on_error(self, error: BaseException) -> None:
        """The generation raised."""
