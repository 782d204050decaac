"""Root hooks of the transformer: open and close a forward, hand its joint calls on."""

from __future__ import annotations

import contextvars
import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..adapter import Adapter
from ..errors import AdapterMismatch, TapNotFired, UnsupportedRuntime, UVRError
from .calls import AttentionCall, joint_call, spans_of
from .current import Current
from .guidance import parts_of
from .hooks import Hook
from .intervention import Begin, Intervention
from .ledger import Forward, Run
from .order import in_order, put_back
from .reading import Reader, Reading
from .runtime import OUTSIDE, Along, refuse_forward, refuse_split_batch, skipping
from .traced import Observer, observing


class _Thread(threading.local):
    """Of this thread's forward: what ends its run, if it is a single one; who saw compiled calls before; who reads."""

    token: contextvars.Token[Intervention | None] | None = None
    before: Observer | None = None

    def __init__(self) -> None:
        self.reader = Reader()


class Forwards:
    """Watches the calls of one transformer.

    Args:
        transformer: the root module.
        adapter: how to read its arguments.
        current: the run of each thread.
        pipeline: the pipeline that drives it; None: it is driven by hand.
        begin: makes the intervention of a forward outside of any run, which is then a run of its own; None: such a
            forward is refused.
    """

    def __init__(
        self, transformer: nn.Module, adapter: Adapter, current: Current, pipeline: object, begin: Begin | None
    ):
        self.taps = tuple(adapter.taps(transformer))
        self.along = Along(transformer, self.taps)
        self._transformer, self._adapter, self._current = transformer, adapter, current
        self._pipeline, self._trusted = pipeline, pipeline is not None and adapter.drives(type(pipeline))
        self._signature = inspect.signature(type(transformer).forward)
        self._begin, self._thread = begin, _Thread()
        self._handles: list[Any] = []

    def register(self, prepare: Callable[[], None]) -> None:
        """Put the hooks on; `prepare` is called before each forward."""
        self._prepare = prepare
        before, after = Hook(self._before), Hook(self._after)
        self._handles.append(self._transformer.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(self._transformer.register_forward_hook(after, with_kwargs=True, always_call=True))

    def remove(self) -> None:
        """Take the hooks off. Idempotent."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        refuse_forward(module, self.along)
        self._prepare()
        reading = self._read(module, args, kwargs)
        if self._thread.token is not None:  # left by a forward that Ctrl-C broke off: torch runs no hook after that
            self._current.reset(self._thread.token)
            self._thread.token = None
        intervention = self._current.get()
        if self._begin is not None and intervention is None:
            intervention = self._begin(Run(self.taps, bare=True))
            self._thread.token = self._current.set(intervention)
        if intervention is None:
            raise UVRError(
                "the regulated transformer was called outside its pipeline; attached to the transformer itself, run "
                "each generation inside `with reg.generation():`, or detach"
            )
        run, latents = intervention.run, reading.arguments.get(self._adapter.latents)
        layout, sigma = reading.layout, reading.sigma
        if layout is None or sigma is None:
            run.set_aside(latents, self._name)
            self._show_compiled()
            return
        run.refuse_drawn_aside(latents)
        step, number, level = run.next_forward(sigma, layout)
        try:
            parts = parts_of(self._adapter.guidance, self._name, number, self._trusted, latents, run.images)
        except UnsupportedRuntime as error:
            names = skipping(module, kwargs)
            raise UnsupportedRuntime(f"{error}. On the model: {', '.join(names)}" if names else str(error)) from None
        forward = Forward(step, number, layout, level, None if latents is None else len(latents), parts, reading.text)
        run.open(forward)
        self._show_compiled()
        intervention.on_forward(forward)

    @property
    def _name(self) -> str | None:
        """What the pipeline calls this forward: through `cache_context`, else through a guider of diffusers, which
        modular pipelines prepare before each forward; None: it does not say."""
        name, guider = self._current.part.get(), getattr(self._pipeline, "guider", None)
        if name is not None or not type(guider).__module__.startswith("diffusers.guiders."):
            return name
        conditional: bool | None = getattr(guider, "is_conditional", None)
        return None if conditional is None else "cond" if conditional else "uncond"

    def _show_compiled(self) -> None:
        """Let this thread's compiled attention be seen until the forward ends."""
        if (before := observing.get()) != self.observe_compiled:
            self._thread.before = before
        observing.set(self.observe_compiled)

    def _read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reading:
        try:
            arguments = self._signature.bind(module, *args, **kwargs).arguments
            return self._thread.reader.read(self._adapter, arguments)
        except (TypeError, KeyError, AttributeError) as error:
            raise AdapterMismatch(
                f"adapter {self._adapter.name!r} cannot read the arguments of {type(module).__name__}.forward: {error}"
            ) from error

    def _after(self, module: nn.Module, args: object, kwargs: Mapping[str, Any], output: object) -> None:
        intervention = self._current.get()
        observing.set(self._thread.before)
        token, self._thread.token = self._thread.token, None
        if token is not None:
            self._current.reset(token)
        if intervention is None or intervention.run.close_aside() or intervention.run.forward is None:
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
        if token is not None:
            intervention.on_end(None)

    def entered(self, path: str) -> None:
        """A tapped module begins."""
        intervention = self._current.get()
        if intervention is not None and intervention.run.passing:
            return
        if intervention is None or intervention.run.forward is None:
            raise UnsupportedRuntime(OUTSIDE.format(path))
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

    def observe_compiled(self, call: AttentionCall) -> torch.Tensor | None:
        """The same of a call in compiled code, which does not say where it is.

        A forward's joint calls come in the order of the taps, and the ledger counts them.
        """
        intervention = self._current.get()
        if intervention is not None and intervention.run.passing:
            return None
        if intervention is None or (forward := intervention.run.forward) is None:
            raise UnsupportedRuntime(OUTSIDE.format("compiled attention"))
        number = min(forward.taps.total(), len(self.taps) - 1)
        call.path = self.taps[number]
        refuse_split_batch(call.path, len(call.query), forward.batch)
        return intervene(call, intervention, self._adapter)


def intervene(call: AttentionCall, intervention: Intervention, adapter: Adapter) -> torch.Tensor | None:
    """Count an attention call of the open forward if it is the joint one, and hand on each part of it.

    Returns:
        (B, H, Sq, D), the output to go on with; None: the call's own.
    """
    forward = intervention.run.forward
    if forward is None or spans_of(call, adapter, forward) is None:
        return None
    tokens = call.key.shape[2] - forward.layout.image - forward.layout.padding
    if forward.text is not None and tokens != forward.text:
        raise UnsupportedRuntime(
            f"{call.path}: attention over {tokens} text tokens, where the transformer was given {forward.text}: "
            "something adds or drops tokens inside it (a hook, a patched forward), and UVR cannot tell where the "
            "picture lies; take it off, or detach UVR"
        )
    forward.taps[call.path] += 1
    output: torch.Tensor | None = None
    if intervention.idle(call.path):
        pass
    elif forward.layout.order is None:
        output = _edited(call, intervention, adapter, forward)
    else:
        ordered = in_order(call, forward)  # a copy, and so is what is written into it
        edited = _edited(ordered, intervention, adapter, forward)
        output = put_back(ordered.output if edited is None else edited, call, forward)
    intervention.run.note_computed(call.path)
    return output


def _edited(call: AttentionCall, intervention: Intervention, adapter: Adapter, forward: Forward) -> torch.Tensor | None:
    """What the intervention makes of each part of a joint call; None: as it is, or written in place."""
    output = call.output
    for part in forward.parts:
        if part.follows_prompt or (intervention.sees_uncond and part.name == "uncond"):
            edited = intervention.on_call(joint_call(call, adapter, forward, part))
            if edited is not None and part.rows is not None:
                edited = torch.cat([output[: part.rows.start], edited, output[part.rows.stop :]])
            output = output if edited is None else edited
    return None if output is call.output else output
