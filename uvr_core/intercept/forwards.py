"""Root hooks of the transformer: open and close a forward, hand its joint calls on."""

from __future__ import annotations

import contextvars
import inspect
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from ..adapter import Adapter, Layout
from ..errors import AdapterMismatch, TapNotFired, UnsupportedRuntime, UVRError
from .calls import AttentionCall, is_joint, joint_call
from .current import Current
from .guidance import Part, parts_of
from .hooks import Hook
from .intervention import Begin, Intervention
from .ledger import Forward, Run
from .runtime import refuse_forward, refuse_split_batch, skipping


class _First(threading.local):
    """Undoes this thread's first run of a bare transformer. It goes with the object; a context would keep it."""

    token: contextvars.Token[Intervention | None] | None = None


class Forwards:
    """Watches the calls of one transformer.

    Args:
        transformer: the root module.
        adapter: how to read its arguments.
        current: the run of each thread.
        pipeline: the pipeline that drives it; None: the transformer is bare, and a run begins by itself when the noise
            level rises.
        begin: makes the intervention of a run that begins here.
    """

    def __init__(self, transformer: nn.Module, adapter: Adapter, current: Current, pipeline: object, begin: Begin):
        self.taps = tuple(adapter.taps(transformer))
        self._transformer, self._adapter, self._current = transformer, adapter, current
        self._pipeline, self._begin = pipeline, begin
        self._signature = inspect.signature(type(transformer).forward)
        self._first = _First()
        self._handles: list[Any] = []

    def register(self) -> None:
        """Put the hooks on."""
        before, after = Hook(torch.compiler.disable(self._before)), Hook(self._after)
        self._handles.append(self._transformer.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(self._transformer.register_forward_hook(after, with_kwargs=True, always_call=True))

    def remove(self) -> None:
        """Take the hooks off, and end this thread's run of a bare transformer. Idempotent."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._first.token is not None:
            with suppress(ValueError):  # it began in a context of its own (asyncio.to_thread), which is gone
                self._current.reset(self._first.token)
            self._first.token = None

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        refuse_forward(module, self.taps)
        layout, sigma, batch = self._read(module, args, kwargs)
        intervention = self._current.get()
        if self._pipeline is None and (intervention is None or _begins(intervention.run, sigma)):
            intervention = self._begin(Run(self.taps, bare=True))
            token = self._current.set(intervention)
            self._first.token = self._first.token or token
        if intervention is None:
            raise UVRError(
                "the regulated transformer was called outside its pipeline; attach to the transformer itself to "
                "drive it by hand, or detach"
            )
        run = intervention.run
        step, number, level = run.next_forward(sigma, layout)
        run.open(Forward(step, number, layout, level, batch, self._parts(batch, number)))

    def _read(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Layout, torch.Tensor, int | None]:
        adapter = self._adapter
        try:
            bound = self._signature.bind(module, *args, **kwargs).arguments
            layout, sigma = adapter.layout(bound), adapter.time(bound)
        except (TypeError, KeyError, AttributeError) as error:
            raise AdapterMismatch(
                f"adapter {adapter.name!r} cannot read the arguments of {type(module).__name__}.forward: {error}"
            ) from error
        if not layout.adds_up:
            raise AdapterMismatch(f"adapter {adapter.name!r} read a layout that does not add up: {layout}")
        latents = bound.get("hidden_states")
        return layout, sigma, None if latents is None else len(latents)

    def _parts(self, batch: int | None, number: int) -> tuple[Part, ...]:
        guidance, pipeline = self._adapter.guidance, self._pipeline
        batched = guidance.startswith("batched") and bool(getattr(pipeline, "do_classifier_free_guidance", False))
        return parts_of(guidance, batch, self._current.part.get(), number, pipeline is None, batched)

    def _after(self, module: nn.Module, args: object, kwargs: Mapping[str, Any], output: object) -> None:
        intervention = self._current.get()
        if intervention is None or intervention.run.forward is None:
            return
        if output is None:  # the forward raised; its own error is the one to show
            intervention.run.abort()
            return
        try:
            forward = intervention.run.close()
        except TapNotFired as error:
            names = skipping(module, kwargs)
            raise TapNotFired(f"{error}. On the model: {', '.join(names)}" if names else str(error)) from None
        intervention.on_forward_end(forward)

    def entered(self, path: str) -> None:
        """A tapped module begins."""
        intervention = self._current.get()
        if intervention is None or intervention.run.forward is None:
            raise UnsupportedRuntime(
                f"{path}: the attention of a regulated transformer ran outside a call of the transformer; call the "
                "transformer and not its forward or its blocks, train without gradient checkpointing, or detach UVR"
            )
        intervention.run.enter(path)

    def left(self, path: str) -> None:
        """A tapped module ends."""
        if (intervention := self._current.get()) is not None:
            intervention.run.leave()

    def observe(self, call: AttentionCall) -> torch.Tensor | None:
        """An attention call of a tapped module. Returns its new output, or None: as it is."""
        intervention = self._current.get()
        if intervention is None or (forward := intervention.run.forward) is None:
            return None
        refuse_split_batch(call.path, len(call.query), forward.batch)
        return intervene(call, intervention, self._adapter) if intervention.run.inside(call.path) else None


def intervene(call: AttentionCall, intervention: Intervention, adapter: Adapter) -> torch.Tensor | None:
    """Count an attention call of the open forward if it is the joint one, and hand on each part of it.

    Returns:
        (B, H, Sq, D), the output to go on with; None: the call's own.
    """
    forward, output = intervention.run.forward, call.output
    if forward is None or not is_joint(call, adapter, forward.layout):
        return None
    forward.taps[call.path] += 1
    for part in forward.parts:
        if part.follows_prompt or (intervention.sees_uncond and part.name == "uncond"):
            edited = intervention.on_call(joint_call(call, adapter, forward, part))
            if edited is not None and part.rows is not None:
                edited = torch.cat([output[: part.rows.start], edited, output[part.rows.stop :]])
            output = output if edited is None else edited
    return None if output is call.output else output


def _begins(run: Run, sigma: torch.Tensor) -> bool:
    """Whether a bare transformer's forward opens a new run: the noise level rose, or the last forward broke off."""
    return run.interrupted or (bool(run.steps) and float(sigma.reshape(-1)[0]) > run.steps[-1].sigma)
