"""Runs of two threads do not meet."""

from __future__ import annotations

import threading

import numpy as np
from runner import Runner, make_bank

import uvr_core
from uvr_plugins.detectors import Oracle


def one_masked() -> np.ndarray:
    """Masks of three samples, the first and last empty."""
    mask = np.zeros((3, 8, 8), bool)
    mask[1, 2:5, 3:6] = True
    return mask


def test_two_threads_on_two_models_do_not_meet() -> None:
    runners = [Runner(), Runner()]
    plans = [one_masked(), np.roll(one_masked(), 1, 0)]
    expected, got = [], [None, None]
    for r, plan in zip(runners, plans, strict=True):
        with uvr_core.attach(r.pipe, concepts=make_bank(), detector=Oracle(plan), policy="block"):
            expected.append(r.run())
    regs = [
        uvr_core.attach(r.pipe, concepts=make_bank(), detector=Oracle(plan), policy="block")
        for r, plan in zip(runners, plans, strict=True)
    ]

    def work(i: int) -> None:
        got[i] = runners[i].run()  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    [r.detach() for r in regs]
    assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))
