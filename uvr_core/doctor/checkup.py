"""Whether UVR fits a model: the conformance checks of its adapter, or of a draft, on a small random version."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import nn

from ..adapter import Adapter
from ..engine.attach import attach
from ..errors import ConformanceError, UVRError
from ..testing import Conformance, Example, check_adapter
from ..testing.adapter.text import ROUNDING, leaks
from ..testing.inputs import STATES, TinyInputs
from ..testing.tiny import example_of, small_model
from .draft import draft, load_draft
from .examine import Findings, examine

Checks = list[dict[str, str]]  # name, status, message


def check_up(
    adapter: Adapter,
    transformer: nn.Module | None,
    cls: type[nn.Module],
    config: Mapping[str, Any],
    make_example: Callable[[], Example] | None = None,
) -> dict[str, Any]:
    """Fingerprint, taps, probes, routes of text and checks of a model that an adapter recognises.

    Args:
        adapter: the adapter.
        transformer: the model, its weights not needed; None: a small version of its class is shown.
        cls, config: its class, and constructor arguments where they differ from the defaults.
        make_example: () -> a fresh Example to hold it against; None: one is made up.
    """
    shown = transformer
    try:
        make_example = make_example or functools.partial(example_of, small_model(cls, config))
        shown = make_example().model if transformer is None else transformer
    except UVRError as error:
        checks = [{"name": "small-version", "status": "failed", "message": str(error)}]
    else:
        checks = _checks(adapter, make_example)
    return {**(_facts(adapter, shown) if shown is not None else {}), "checks": checks}


def draft_for(cls: type[nn.Module], config: Mapping[str, Any]) -> dict[str, Any]:
    """Findings, the draft's source and its checks, of a class that no adapter recognises.

    Raises:
        UVRError: no small version runs, or text and picture do not meet in its attention.
    """
    small = small_model(cls, config)
    make_example = functools.partial(example_of, small)
    findings = _with_routes(examine(small), small)
    checks = _checks(load_draft(draft(findings, small)), make_example)
    if "ragged" in failed(checks):
        doubt = "prompts of unequal length move the picture elsewhere in each sample: give Layout an order"
        findings = attrs.evolve(findings, unsure={**findings.unsure, "layout": doubt})
    return {"findings": attrs.asdict(findings), "draft": draft(findings, small), "checks": checks}


def _with_routes(findings: Findings, small: TinyInputs) -> Findings:
    """The findings, and by which arguments text reaches the picture beside the joint attention."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        left = leaks(load_draft(draft(findings, small)), example_of(small))
    beside = [name for name, share in left.items() if share > ROUNDING]
    unsure = dict(findings.unsure)
    if states := [name for name in beside if name in STATES]:
        share = max(left[name] for name in states)
        unsure["routes"] = (
            f"a module reads the text beside ({share:.2g} of what it moves): name it in a TextRoute's modules"
        )
    return attrs.evolve(findings, routes=tuple(name for name in beside if name not in STATES), unsure=unsure)


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
            "routes": [{"name": route.name, "description": route.description} for route in adapter.routes],
        }


def _checks(adapter: Adapter, make_example: Callable[[], Example]) -> Checks:
    """Outcomes of check_adapter on fresh examples."""
    try:
        report = check_adapter(adapter, make_example)
    except ConformanceError as error:
        if not isinstance(error.report, Conformance):
            raise
        report = error.report
    return [{"name": o.name, "status": str(o.status), "message": o.message} for o in report.outcomes]
