"""Step caches whose decision to reuse can be seen: they reuse only what was computed under what is in force now.

A step served from a cache carries what the last computed step left there, regulated. So everything is computed while
a concept is looked for and until all of it was computed under today's masks; the ledger counts what is reused.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from .current import Current
from .ledger import Forward

_DECISION = "_should_compute_remaining_blocks"  # of diffusers' first block cache, asked when the first block has run
_MAG = "mag_cache"  # diffusers' module, whose decision is inside the forward of its hook on the first block
_HELD = ("previous_residual", "should_compute")  # of its state: what it reuses, and whether it computed


class Caches:
    """The caches of one transformer.

    Args:
        along: the transformer and every module on the way to a tap, as they are now.
        current: the run of each thread.
    """

    def __init__(self, along: Iterable[nn.Module], current: Current):
        self._along, self._current = along, current
        self._wrapped: list[tuple[Any, Callable[[], None]]] = []  # a hook, and what takes ours off it

    def wrap(self) -> None:
        """Put our decision over the stock one, on each hook that has one; what was switched on since included."""
        for hook in self._hooks():
            if all(hook is not wrapped for wrapped, _ in self._wrapped):
                put = self._decide if hasattr(type(hook), _DECISION) else self._hold
                self._wrapped.append((hook, put(hook)))

    def remove(self) -> None:
        """Take ours off. Idempotent."""
        for _, remove in self._wrapped:
            remove()
        self._wrapped.clear()

    def _hooks(self) -> Iterator[Any]:
        for module in self._along:
            registry = module.__dict__.get("_diffusers_hook")
            for hook in getattr(registry, "hooks", {}).values():
                if hasattr(type(hook), _DECISION) or _is_mag_head(hook):
                    yield hook

    def _forward(self) -> Forward | None:
        intervention = self._current.get()
        return None if intervention is None else intervention.run.forward

    def _may(self, forward: Forward) -> bool:
        """Whether what has not run yet of a forward may be served from what ran before."""
        intervention = self._current.get()
        return intervention is not None and intervention.reusable(forward) and intervention.run.computed_rest(forward)

    def _decide(self, hook: Any) -> Callable[[], None]:
        stock = getattr(hook, _DECISION)

        @torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
        def should_compute(*args: Any) -> bool:
            if (forward := self._forward()) is None:
                return bool(stock(*args))
            forward.reuses = self._may(forward) and not stock(*args)
            return not forward.reuses

        setattr(hook, _DECISION, should_compute)
        return lambda: vars(hook).pop(_DECISION, None)

    def _hold(self, hook: Any) -> Callable[[], None]:
        """Of a hook that decides by itself: with nothing held it computes, and its state says what it did."""
        stock_before, stock_after = hook.fn_ref.pre_forward, hook.fn_ref.post_forward
        parts: weakref.WeakKeyDictionary[Any, tuple[str, ...]] = (
            weakref.WeakKeyDictionary()
        )  # that computed what it holds

        @torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
        def before(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if (forward := self._forward()) is not None:
                may = self._may(forward)
                for state in _states(hook):
                    if not may or parts.get(state) != forward.names:
                        state.previous_residual = None
            return stock_before(module, *args, **kwargs)

        @torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
        def after(module: nn.Module, output: Any) -> Any:
            state, forward = hook.state_manager.get_state(), self._forward()
            if forward is None:
                parts.pop(state, None)
            else:
                forward.reuses = not state.should_compute
                parts[state] = forward.names
            return stock_after(module, output)

        hook.fn_ref.pre_forward, hook.fn_ref.post_forward = before, after

        def remove() -> None:
            hook.fn_ref.pre_forward, hook.fn_ref.post_forward = stock_before, stock_after

        return remove


def _is_mag_head(hook: Any) -> bool:
    """Whether a hook is MagCache's on the first block, as we know it: of another make it stays a skipped tap."""
    if not type(hook).__module__.endswith(f".{_MAG}") or not getattr(type(hook), "_is_stateful", False):
        return False
    state = hook.state_manager._state_cls()
    return all(hasattr(state, name) for name in _HELD) and hasattr(hook, "fn_ref")


def _states(hook: Any) -> list[Any]:
    """The state that a forward of a hook is about to use: of the context that it was told; untold, any."""
    manager = hook.state_manager
    told = getattr(manager, "_context", None) or getattr(
        manager, "_current_context", None
    )  # the newer name, and the older
    return list(manager._state_cache.values()) if told is None else [manager.get_state()]
