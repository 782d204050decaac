"""An engine that changes what it was not asked to is caught."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from conformance import FLUX, failed, nudge_output
from tiny import example

from uvr_core.engine import reweight
from uvr_core.engine.regulator import Regulator
from uvr_core.testing import check_adapter

pytestmark = pytest.mark.usefixtures("one_thread")


def round_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are computed anew come out a little large."""

    def rounded(*arguments: Any, stock: Any = reweight.restricted_rows, **options: Any) -> torch.Tensor:
        return stock(*arguments, **options) * 1.01

    monkeypatch.setattr(reweight, "restricted_rows", rounded)


def leave_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detaching leaves a hook behind."""

    def detach(self: Regulator, stock: Any = Regulator.detach) -> None:
        next(iter(self._interceptor.taps.modules.values())).register_forward_hook(lambda *_: None)
        stock(self)

    monkeypatch.setattr(Regulator, "detach", detach)


FAULTS = {"neutral-edit": round_rows, "no-edit": nudge_output, "detach": leave_hook}


@pytest.mark.parametrize("check", FAULTS)
def test_a_broken_engine_is_caught(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[check](monkeypatch)
    assert check in failed(check_adapter, FLUX, functools.partial(example, "flux"))
