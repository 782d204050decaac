"""UVR: regulate what flows into the patches where an unsafe concept begins to form, in MM-DiT image generators.

    import uvr_core
    with uvr_core.attach(pipe, concepts="weapon.safetensors") as reg:
        images = pipe(prompt).images
        print(reg.report)

Importing this package is cheap; torch loads with the first name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    AdapterMismatch,
    AdapterNotFound,
    ConceptMismatch,
    PluginError,
    TapNotFired,
    UnsafeContent,
    UnsupportedRuntime,
    UVRError,
)

if TYPE_CHECKING:
    from .adapter import Adapter, Layout
    from .concepts import Calibration, ConceptBank, Fingerprint, SourceLook, TextCarriers, load_concepts
    from .concepts.hub import pull
    from .engine.attach import attach
    from .engine.regulator import Regulator
    from .engine.report import Report
    from .fit.calibrate import calibrate
    from .fit.carriers import calibrate_text
    from .fit.collect import collect
    from .fit.source import calibrate_source
    from .fit.verification import calibrate_verification
    from .protocols import Baseline, CallInfo, ConceptTerms, Detector, FlowEdit, Judge, Located, Policy, Request

__version__ = "0.1.0"

_HOMES = {
    "Adapter": "adapter", "Layout": "adapter", "Calibration": "concepts", "ConceptBank": "concepts",
    "Fingerprint": "concepts", "load_concepts": "concepts", "collect": "fit.collect", "calibrate": "fit.calibrate",
    "calibrate_source": "fit.source", "calibrate_verification": "fit.verification", "SourceLook": "concepts",
    "calibrate_text": "fit.carriers", "TextCarriers": "concepts",
    "pull": "concepts.hub",
    "CallInfo": "protocols", "Detector": "protocols", "FlowEdit": "protocols", "Located": "protocols",
    "Policy": "protocols", "Baseline": "protocols", "Judge": "protocols", "Request": "protocols",
    "ConceptTerms": "protocols", "Regulator": "engine.regulator", "attach": "engine.attach", "Report": "engine.report",
}  # fmt: skip

__all__ = [
    "Adapter", "AdapterMismatch", "AdapterNotFound", "Baseline", "Calibration", "CallInfo", "ConceptBank",
    "ConceptMismatch", "ConceptTerms", "Detector", "Fingerprint", "FlowEdit", "Judge", "Layout", "Located",
    "PluginError", "Policy", "Regulator", "Report", "Request", "SourceLook", "TapNotFired", "TextCarriers", "UVRError",
    "UnsafeContent", "UnsupportedRuntime", "attach", "calibrate", "calibrate_source", "calibrate_text",
    "calibrate_verification", "collect", "load_concepts", "pull",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
