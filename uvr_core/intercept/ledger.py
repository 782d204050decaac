"""The ledger of one generation: its steps, forwards and taps, and the only judge of whether all of them held."""

from __future__ import annotations

import math
import threading
from collections import Counter
from typing import Any

import attrs
import torch

from ..adapter import Layout
from ..errors import TapNotFired, UnsupportedRuntime, UVRError
from ..tokens import TokenSpans
from .guidance import Part, alike


@attrs.define(eq=False)
class Forward:
    """One call of the transformer's root.

    Attributes:
        step: scheduler step it belongs to, 0 first.
        number: which forward of that step it is, 0 first.
        layout: where its image tokens lie.
        text: number of text tokens that it was given; None: the adapter does not say.
        sigma: noise level, 1 = pure noise, 0 = clean.
        batch: rows of its latents, None if its arguments do not say.
        parts: the rows under each guidance condition; those that follow the prompt last.
        taps: how often each joint call ran.
        reuses: a step cache serves the joint calls that did not run.
        spans: of the queries and keys of a joint call with so many of either; None where such a call is none.
        orders: the layout's order of so many tokens, on the model's device, as far as it was asked for.
    """

    step: int
    number: int
    layout: Layout
    sigma: float
    batch: int | None
    parts: tuple[Part, ...]
    text: int | None = None
    taps: Counter[str] = attrs.field(factory=Counter)
    reuses: bool = False
    spans: dict[tuple[int, int], tuple[TokenSpans, TokenSpans] | None] = attrs.field(factory=dict)
    orders: dict[int, torch.Tensor] = attrs.field(factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Of its guidance parts: what one computed is not another's."""
        return tuple(part.name for part in self.parts)


@attrs.define(eq=False)
class Step:
    """One step: what one call of `scheduler.step` ends, or, without a scheduler, one noise level.

    Attributes:
        sigma: noise level of its first forward; NaN if it had none.
        forwards: how many it had.
        follows_prompt: whether one of them had rows that follow the prompt.
        closed: the scheduler ended it.
    """

    sigma: float = math.nan
    forwards: int = 0
    follows_prompt: bool = False
    closed: bool = False


@attrs.define(eq=False)
class Run:
    """One generation of one thread. Never shared.

    Attributes:
        taps: paths of the joint attention modules, in order of execution.
        seeds: of the images' generators; a short list is extended by counting up.
        images: how many the pipeline was asked for; None: not known.
        bare: no pipeline drives the transformer: nobody can withhold an image.
        scheduled: a scheduler ends the steps; else a new noise level begins one. scheduler: that one, if it is known.
        steps: what happened so far.
        forward: the forward that is open.
        fired: joint calls that were verified; reused: those that a step cache served from earlier ones.
        version: grows whenever joint calls would be edited otherwise than before: masks, policies that begin or end.
        aside: forwards before the first step that draw nothing, as the adapter says; they passed as they are.
        broken: a forward raised.
        counted: whether steps must be alike in their number of forwards: some of them were told apart by order.
        thread: the thread that opened it.
    """

    taps: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    bare: bool = False
    scheduled: bool = False
    images: int | None = None
    scheduler: Any = attrs.field(default=None, kw_only=True)
    steps: list[Step] = attrs.field(factory=list, init=False)
    forward: Forward | None = attrs.field(default=None, init=False)
    layout: Layout | None = attrs.field(default=None, init=False)
    fired: int = attrs.field(default=0, init=False)
    reused: int = attrs.field(default=0, init=False)
    version: int = attrs.field(default=0, init=False)
    _computed: dict[tuple[str, tuple[str, ...]], int] = attrs.field(factory=dict, init=False)  # as of which version
    aside: int = attrs.field(default=0, init=False)
    broken: bool = attrs.field(default=False, init=False)
    counted: bool = attrs.field(default=False, init=False)
    thread: int = attrs.field(factory=threading.get_ident, init=False)
    _entered: str | None = attrs.field(default=None, init=False)
    _passing: bool = attrs.field(default=False, init=False)
    _passed: list[Any] = attrs.field(factory=list, init=False)  # latents of the forwards set aside

    @property
    def passes(self) -> list[int]:
        """Forwards per step."""
        return [step.forwards for step in self.steps]

    @property
    def sigmas(self) -> list[float]:
        """Noise level per step."""
        return [step.sigma for step in self.steps]

    @property
    def interrupted(self) -> bool:
        """Seen from outside of a forward: whether the last one was broken off."""
        return self.broken or self.forward is not None or self._passing

    def set_aside(self, latents: Any, name: str | None) -> None:
        """Let a forward pass that draws nothing, as the adapter says, until `close_aside`.

        Args:
            latents: its own.
            name: what the pipeline calls it through `cache_context`.

        Raises:
            UnsupportedRuntime: it may have a part in the picture: a step began before, or it is named.
            TapNotFired: another forward is open.
        """
        self._refuse_inner()
        if self.steps or name is not None:
            where = f"named {name!r}" if name is not None else f"in step {len(self.steps) - 1}"
            raise UnsupportedRuntime(
                f"a forward {where} draws nothing, as the adapter says; UVR lets such a forward pass only before the "
                "first step: what runs in a step has a part in the picture"
            )
        self.aside, self._passing = self.aside + 1, True
        self._passed.append(latents)

    def close_aside(self) -> bool:
        """End a forward that was set aside; whether one was open."""
        passing, self._passing = self._passing, False
        return passing

    @property
    def passing(self) -> bool:
        """Whether the forward that runs was set aside."""
        return self._passing

    def refuse_drawn_aside(self, latents: Any) -> None:
        """Raise UnsupportedRuntime if a forward that was set aside held the latents of the first step. No host sync
        where none was."""
        passed, self._passed = self._passed, []
        if any(alike(latents, other) for other in passed):
            raise UnsupportedRuntime(
                "a forward over the latents of the first step was set aside as one that draws nothing: it has a part "
                "in the picture, and the adapter's layout must not be None there"
            )

    def _refuse_inner(self) -> None:
        if self.forward is not None or self._passing:
            raise TapNotFired("a second forward of the transformer began inside the first; UVR expects one at a time")

    def next_forward(self, sigma: torch.Tensor, layout: Layout) -> tuple[int, int, float]:
        """Where a forward that begins now stands: (step, number in it, noise level).

        Raises:
            UVRError: the noise level is not finite, samples differ in theirs, or the layout is not the run's.
            TapNotFired: another forward is open.
        """
        levels: list[float] = sigma.detach().float().flatten().tolist()  # host sync
        if not all(map(math.isfinite, levels)):
            strange = next(level for level in levels if not math.isfinite(level))
            raise UVRError(f"the model's time argument gives noise level {strange}; expected 0..1")
        low, high = min(levels), max(levels)
        if low != high:
            raise UVRError(
                f"the samples of one forward have noise levels from {low:.3g} to {high:.3g}; UVR expects one for all: "
                "run samples of different noise levels in generations of their own"
            )
        self._refuse_inner()
        if self.layout is not None and not _same_pictures(layout, self.layout):
            raise UVRError(f"the token layout changed inside one generation: {self.layout} became {layout}")
        last = self.steps[-1] if self.steps else None
        if last is None or last.closed or (not self.scheduled and low != last.sigma):
            return len(self.steps), 0, low
        return len(self.steps) - 1, last.forwards, low

    def open(self, forward: Forward) -> None:
        """Begin a forward."""
        if forward.step == len(self.steps):
            self.steps.append(Step(forward.sigma))
        step = self.steps[forward.step]
        step.forwards += 1
        step.follows_prompt |= any(part.follows_prompt for part in forward.parts)
        self.counted |= any(part.by_order for part in forward.parts)
        self.forward, self.layout = forward, self.layout or forward.layout

    def end_step(self) -> None:
        """The scheduler made a step."""
        if not self.steps or self.steps[-1].closed:
            self.steps.append(Step())
        self.steps[-1].closed = True

    def close(self) -> Forward:
        """End the open forward: every tap must have fired exactly once.

        Raises:
            TapNotFired: naming the first tap that did not fire once, and the step.
        """
        forward, unclosed = self.forward, self._entered
        self.forward = self._entered = None
        assert forward is not None
        if unclosed is not None:
            raise _unclosed(unclosed, forward.step)
        reused = 0
        for number, path in enumerate(self.taps):
            if forward.reuses and not forward.taps[path] and self._is_computed(path, forward):
                reused += 1
            elif forward.taps[path] != 1:
                verb = "did not fire" if forward.taps[path] == 0 else f"fired {forward.taps[path]} times"
                raise TapNotFired(
                    f"tap {number + 1} of {len(self.taps)} ({path}) {verb} at step {forward.step}; a cache or a "
                    "layer-skipping feature is on: disable it, or detach UVR"
                )
        self.fired, self.reused = self.fired + len(self.taps) - reused, self.reused + reused
        return forward

    def note_computed(self, path: str) -> None:
        """A joint call of the open forward ran, and was edited as is right now."""
        if self.forward is not None:
            self._computed[path, self.forward.names] = self.version

    def computed_rest(self, forward: Forward) -> bool:
        """Whether every joint call that has not run in a forward ran in an earlier one, edited as would be now."""
        return all(forward.taps[path] or self._is_computed(path, forward) for path in self.taps)

    def _is_computed(self, path: str, forward: Forward) -> bool:
        return self._computed.get((path, forward.names)) == self.version

    def abort(self) -> None:
        """The open forward raised: forget it, and remember that this generation broke off."""
        self.forward = self._entered = None
        self.broken = True

    def enter(self, path: str) -> None:
        """A tapped module begins."""
        if self._entered is not None:
            raise _unclosed(self._entered, len(self.steps) - 1)
        self._entered = path if self.forward is not None else None

    def leave(self) -> None:
        """A tapped module ends."""
        self._entered = None

    def inside(self, path: str) -> bool:
        """Whether the module of that path is the one that runs, in an open forward."""
        return self.forward is not None and self._entered == path

    def verify(self) -> None:
        """Whether a whole generation can be vouched for.

        Raises:
            TapNotFired: no step at all, a step without a forward or a forward without a step, a joint call that is
                missing, a step in which nothing followed the prompt, or steps that differ in forwards told apart by
                their order.
        """
        carried = sum(step.forwards > 0 for step in self.steps)
        ended = sum(step.closed for step in self.steps) if self.scheduled else carried
        if not self.steps or carried != len(self.steps) or ended != len(self.steps):
            raise TapNotFired(
                f"the scheduler ran {ended} steps but {carried} carried a verified forward of the transformer; "
                "the images are withheld"
            )
        if self.interrupted or self.fired + self.reused != sum(self.passes) * len(self.taps):
            raise TapNotFired(
                f"{self.fired} attention calls were verified, {sum(self.passes)} forwards of {len(self.taps)} "
                "taps were begun (a hook of UVR was removed?); the images are withheld"
            )
        if unregulated := [number for number, step in enumerate(self.steps) if not step.follows_prompt]:
            raise TapNotFired(
                f"no forward of step {unregulated[0]} was named as the one that follows the prompt "
                '(transformer.cache_context("cond")); the images are withheld'
            )
        for number, count in enumerate(self.passes):
            if self.counted and count != self.passes[0]:
                raise TapNotFired(
                    f"step {number} had {count} transformer passes, step 0 had {self.passes[0]}; "
                    "guidance that changes inside a run is not supported; the images are withheld"
                )


def _same_pictures(layout: Layout, first: Layout) -> bool:
    """Whether a forward of a run draws what its first did. Padding may go with the text, and a part of guidance may do
    without the references."""
    return layout.grid == first.grid and layout.references in (first.references, ())


def _unclosed(path: str, step: int) -> TapNotFired:
    return TapNotFired(f"{path} was entered and not left at step {step}; a hook of UVR was removed: detach, and attach")
