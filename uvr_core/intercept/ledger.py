"""The ledger of one generation: its steps, forwards and taps, and the only judge of whether all of them held."""

from __future__ import annotations

import threading
from collections import Counter

import attrs
import numpy as np
import torch

from ..adapter import Layout
from ..errors import TapNotFired, UVRError
from .guidance import Part


@attrs.define(eq=False)
class Forward:
    """One call of the transformer's root.

    Attributes:
        step: scheduler step it belongs to, 0 first.
        number: which forward of that step it is, 0 first.
        layout: where its image tokens lie.
        sigma: noise level, 1 = pure noise, 0 = clean.
        batch: rows of its latents, None if its arguments do not say.
        parts: the rows under each guidance condition; those that follow the prompt last.
        taps: how often each joint call ran.
    """

    step: int
    number: int
    layout: Layout
    sigma: float
    batch: int | None
    parts: tuple[Part, ...]
    taps: Counter[str] = attrs.field(factory=Counter)


@attrs.define(eq=False)
class Step:
    """One step of the scheduler: its noise level, its forwards, and whether one of them followed the prompt."""

    sigma: float
    forwards: int = 0
    follows_prompt: bool = False


@attrs.define(eq=False)
class Run:
    """One generation of one thread. Never shared.

    Attributes:
        taps: paths of the joint attention modules, in order of execution.
        seeds: of the images' generators; a short list is extended by counting up.
        bare: no pipeline drives the transformer: nobody can withhold an image.
        steps: what happened so far.
        forward: the forward that is open.
        fired: joint calls that were verified.
        broken: a forward raised.
        thread: the thread that opened it.
    """

    taps: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    bare: bool = False
    steps: list[Step] = attrs.field(factory=list, init=False)
    forward: Forward | None = attrs.field(default=None, init=False)
    layout: Layout | None = attrs.field(default=None, init=False)
    fired: int = attrs.field(default=0, init=False)
    broken: bool = attrs.field(default=False, init=False)
    thread: int = attrs.field(factory=threading.get_ident, init=False)
    _entered: str | None = attrs.field(default=None, init=False)

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
        return self.broken or self.forward is not None

    def next_forward(self, sigma: torch.Tensor, layout: Layout) -> tuple[int, int, float]:
        """Where a forward that begins now stands: (step, number in it, noise level). A new noise level is a new step.

        Raises:
            UVRError: the noise level is not finite, or the layout differs from the run's.
            TapNotFired: another forward is open.
        """
        level = float(sigma.reshape(-1)[0])
        if not np.isfinite(level):
            raise UVRError(f"the model's time argument gives noise level {level}; expected 0..1")
        if self.forward is not None:
            raise TapNotFired("a second forward of the transformer began inside the first; UVR expects one at a time")
        if self.layout is not None and layout != self.layout:
            raise UVRError(f"the token layout changed inside one generation: {self.layout} became {layout}")
        if self.steps and level == self.steps[-1].sigma:
            return len(self.steps) - 1, self.steps[-1].forwards, level
        return len(self.steps), 0, level

    def open(self, forward: Forward) -> None:
        """Begin a forward."""
        if forward.step == len(self.steps):
            self.steps.append(Step(forward.sigma))
        step = self.steps[forward.step]
        step.forwards += 1
        step.follows_prompt |= any(part.follows_prompt for part in forward.parts)
        self.forward, self.layout = forward, forward.layout

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
        for number, path in enumerate(self.taps):
            if forward.taps[path] != 1:
                verb = "did not fire" if forward.taps[path] == 0 else f"fired {forward.taps[path]} times"
                raise TapNotFired(
                    f"tap {number + 1} of {len(self.taps)} ({path}) {verb} at step {forward.step}; a cache or a "
                    "layer-skipping feature is on: disable it, or detach UVR"
                )
        self.fired += len(self.taps)
        return forward

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

    def verify(self, expected: int) -> None:
        """Whether a whole generation can be vouched for.

        Args:
            expected: steps that the scheduler ran.

        Raises:
            TapNotFired: another number of steps carried a forward, a joint call is missing, a step had no forward that
                follows the prompt, or steps differ in their number of forwards.
        """
        if len(self.steps) != expected:
            raise TapNotFired(
                f"the scheduler ran {expected} steps but {len(self.steps)} carried a verified forward of the "
                "transformer; the images are withheld"
            )
        if self.interrupted or self.fired != sum(self.passes) * len(self.taps):
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
            if count != self.passes[0]:
                raise TapNotFired(
                    f"step {number} had {count} transformer passes, step 0 had {self.passes[0]}; "
                    "guidance that changes inside a run is not supported; the images are withheld"
                )


def _unclosed(path: str, step: int) -> TapNotFired:
    return TapNotFired(f"{path} was entered and not left at step {step}; a hook of UVR was removed: detach, and attach")
