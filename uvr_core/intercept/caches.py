"""Step caches whose decision to reuse can be seen: they reuse only what was computed under what is in force now.

A step served from a cache carries what the last computed step left there, regulated. So everything is computed while
a concept is looked for and until all of it was computed under today's masks; the ledger counts what is reused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from .current import Current

_DECISION = "_should_compute_remaining_blocks"  # of diffusers' first block cache, asked when the first block has run


class Caches:
    """The caches of one transformer.

    Args:
        along: the transformer and every module on the way to a tap, as they are now.
        current: the run of each thread.
    """

    def __init__(self, along: Iterable[nn.Module], current: Current):
        self._along, self._current = along, current
        self._wrapped: list[Any] = []

    def wrap(self) -> None:
        """Put our decision over the stock one, on each hook that has one; what was switched on since included."""
        for hook in self._hooks():
            if _DECISION not in vars(hook):
                self._wrapped.append(hook)
                setattr(hook, _DECISION, self._decision(hook))

    def remove(self) -> None:
        """Take ours off. Idempotent."""
        for hook in self._wrapped:
            vars(hook).pop(_DECISION, None)
        self._wrapped.clear()

    def _hooks(self) -> Iterator[Any]:
        for module in self._along:
            registry = module.__dict__.get("_diffusers_hook")
            yield from (hook for hook in getattr(registry, "hooks", {}).values() if hasattr(type(hook), _DECISION))

    def _decision(self, hook: Any) -> Any:
        stock, current = getattr(hook, _DECISION), self._current

        @torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
        def should_compute(*args: Any) -> bool:
            intervention = current.get()
            if intervention is None or (forward := intervention.run.forward) is None:
                return bool(stock(*args))
            may = intervention.reusable(forward) and intervention.run.computed_rest(forward)
            forward.reuses = may and not stock(*args)
            return not forward.reuses

        return should_compute
