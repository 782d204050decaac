"""The door: an intervention that does nothing changes nothing, and one that acts is told every call of its rows."""

from __future__ import annotations

import numpy as np
import torch
from runner import Runner

from uvr_core.engine.lookup import find_adapter
from uvr_core.intercept.calls import JointCall
from uvr_core.intercept.interceptor import Interceptor
from uvr_core.intercept.intervention import Intervention
from uvr_core.intercept.ledger import Forward, Run


class Watching(Intervention):
    sees_uncond = True

    def __init__(self, run: Run):
        super().__init__(run)
        self.calls: list[tuple[int, str, str]] = []
        self.ends: list[int] = []

    def on_call(self, call: JointCall) -> torch.Tensor | None:
        self.calls.append((call.forward.step, call.part.name, call.tap))
        return None

    def on_forward_end(self, forward: Forward) -> None:
        self.ends.append(forward.step)


class Doubling(Intervention):
    def on_call(self, call: JointCall) -> torch.Tensor | None:
        return 2 * call.output


def test_doing_nothing_is_bitwise_stock_and_every_call_is_told_once(runner: Runner) -> None:
    stock, transformer = runner.run(true_cfg_scale=3.0), runner.pipe.transformer
    begun: list[Watching] = []

    def begin(run: Run) -> Watching:
        begun.append(Watching(run))
        return begun[-1]

    interceptor = Interceptor(transformer, find_adapter(transformer), begin, runner.pipe)
    try:
        assert np.array_equal(runner.run(true_cfg_scale=3.0), stock)
    finally:
        interceptor.remove()
    (watching,) = begun
    taps = interceptor.forwards.taps
    assert watching.calls == [(s, part, tap) for s in range(3) for part in ("cond", "uncond") for tap in taps]
    assert watching.ends == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(runner.run(true_cfg_scale=3.0), stock)


def test_what_on_call_returns_is_what_flows_on(runner: Runner) -> None:
    stock, transformer = runner.run(), runner.pipe.transformer
    interceptor = Interceptor(transformer, find_adapter(transformer), Doubling, runner.pipe)
    try:
        assert not np.array_equal(runner.run(), stock)
    finally:
        interceptor.remove()
    assert np.array_equal(runner.run(), stock)
