"""One interceptor on a model at a time."""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rig import Rig, reference, seen_through
from runner import Runner

import uvr_core
from uvr_plugins.detectors import Oracle


def one_masked() -> np.ndarray:
    """Masks of three samples, the first and last empty."""
    mask = np.zeros((3, 8, 8), bool)
    mask[1, 2:5, 3:6] = True
    return mask


def test_attaching_twice_is_refused_and_harms_nothing(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    stock = runner.run()
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy="block"):
        regulated = runner.run()
        with pytest.raises(uvr_core.UnsupportedRuntime, match="already regulated"):
            uvr_core.attach(runner.pipe)
        assert np.array_equal(runner.run(), regulated)
    assert np.array_equal(runner.run(), stock)


INTERRUPTED = ("interceptor.py", "taps.py", "pipeline.py", "forwards.py")


def test_a_signal_at_any_line_of_attach_leaves_nothing(one_thread: None) -> None:
    """Whatever was done by then is undone, and the next attach goes through."""
    rig = Rig("flux")
    kind, at = type(rig.pipe), itertools.count(1)

    def interrupt(number: int) -> Callable[..., Any]:
        passed = itertools.count(1)

        def line(frame: types.FrameType, event: str, argument: object) -> Any:
            if event == "line" and next(passed) == number:
                sys.settrace(None)
                raise KeyboardInterrupt
            return line

        def call(frame: types.FrameType, event: str, argument: object) -> Any:
            name, code = Path(frame.f_code.co_filename), frame.f_code.co_name
            mine = name.name in INTERRUPTED and name.parent.name == "intercept"
            return line if mine and code in ("__init__", "_seat", "wrap", "register") else None

        return call

    for number in at:
        before = sys.gettrace()
        sys.settrace(interrupt(number))
        try:
            reg = rig.attach()
        except KeyboardInterrupt:
            assert not seen_through(rig), number
            assert type(rig.pipe) is kind, number
            assert "cache_context" not in vars(rig.transformer), number
            continue
        finally:
            sys.settrace(before)
        break
    assert number > 50, "the lines are no longer passed: this test shows nothing"
    with reg:
        assert torch.equal(rig.run(), reference("flux"))
