"""What tests of the conformance kit share: what is built in, runs that must fail, and faults put into the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch

from uvr_core import plugins
from uvr_core.adapter import Adapter, Layout
from uvr_core.engine.regulation import Regulation
from uvr_core.errors import ConformanceError
from uvr_core.intercept.calls import JointCall
from uvr_core.testing import Conformance
from uvr_core.tokens import TokenSpans

BUILT_IN = ("builtin-adapters", "builtin-plugins")


def built_in(kind: str) -> list[str]:
    return sorted(name for name, (_, origin) in plugins.registry().names(kind).items() if origin in BUILT_IN)


def get(kind: str, name: str) -> Any:
    plugin = plugins.registry().get(kind, name)
    return plugin() if isinstance(plugin, type) else plugin


def failed(check: Callable[..., Conformance], *arguments: Any, **options: Any) -> dict[str, str]:
    """{check: message} of a run that must not pass."""
    with pytest.raises(ConformanceError) as caught:
        check(*arguments, **options)
    report = caught.value.report
    assert isinstance(report, Conformance)
    for outcome in report.failures:
        assert f"{outcome.name}: {outcome.message}" in str(caught.value)
    return {outcome.name: outcome.message for outcome in report.failures}


def shift_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes every output row for the one before it."""

    stock = TokenSpans.of

    def shifted(cls: type, adapter: Adapter, layout: Layout, tokens: int) -> TokenSpans:
        spans = stock(adapter, layout, tokens)
        return attrs.evolve(spans, output=slice(spans.output.start - 1, spans.output.stop - 1))

    monkeypatch.setattr(TokenSpans, "of", classmethod(shifted))


def nudge_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine changes a little what no policy edits."""

    def nudged(self: Regulation, call: JointCall, stock: Any = Regulation.on_call) -> torch.Tensor | None:
        edited = stock(self, call)
        return call.output * (1 + 1e-6) if edited is None else edited

    monkeypatch.setattr(Regulation, "on_call", nudged)


FLUX, SD3, QWEN = (get("adapter", name) for name in ("flux", "sd3", "qwen-image"))
