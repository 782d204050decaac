"""Whether UVR fits a model: the conformance checks of its adapter, or of a draft, on a small random version."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import attrs
from torch import nn

from ..adapter import Adapter
from ..engine.attach import attach
from ..errors import ConformanceError, UVRError
from ..testing import Conformance, check_adapter
from ..testing.inputs import TinyInputs
from ..testing.tiny import example_of, small_model
from .draft import draft, load_draft
from .examine import examine

Checks = list[dict[str, str]]  # name, status, message


def check_up(
    adapter: Adapter, transformer: nn.Module | None, cls: type[nn.Module], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Fingerprint, taps, probes and checks of a model that an adapter recognises.

    Args:
        adapter: the adapter.
        transformer: the model, its weights not needed; None: a small version of its class is shown.
        cls, config: its class, and constructor arguments where they differ from the defaults.
    """
    small = None
    try:
        small = small_model(cls, config)
    except UVRError as error:
        checks = [{"name": "small-version", "status": "failed", "message": str(error)}]
    else:
        checks = _checks(adapter, small)
    shown = transformer if transformer is not None or small is None else small.model
    return {**(_facts(adapter, shown) if shown is not None else {}), "checks": checks}


def draft_for(cls: type[nn.Module], config: Mapping[str, Any]) -> dict[str, Any]:
    """Findings, the draft's source and its checks, of a class that no adapter recognises.

    Raises:
        UVRError: no small version runs, or text and picture do not meet in its attention.
    """
    small = small_model(cls, config)
    findings = examine(small)
    source = draft(findings, small)
    return {"findings": attrs.asdict(findings), "draft": source, "checks": _checks(load_draft(source), small)}


def failed(checks: Checks) -> list[str]:
    """Names of the checks that neither passed nor were skipped."""
    return [check["name"] for check in checks if check["status"] not in ("passed", "skipped")]


def _facts(adapter: Adapter, model: nn.Module) -> dict[str, Any]:
    modules = dict(model.named_modules())
    with attach(model, adapter) as reg:
        return {
            "fingerprint": attrs.asdict(reg.fingerprint),
            "taps": [{"path": path, "module": type(modules[path]).__name__} for path in reg.taps],
            "probes": list(adapter.probe_paths(model)),
        }


def _checks(adapter: Adapter, small: TinyInputs) -> Checks:
    """Outcomes of check_adapter on fresh copies of a small model."""
    try:
        report = check_adapter(adapter, functools.partial(example_of, small))
    except ConformanceError as error:
        if not isinstance(error.report, Conformance):
            raise
        report = error.report
    return [{"name": o.name, "status": str(o.status), "message": o.message} for o in report.outcomes]
