"""Analysis: what flows where inside a model while it draws, and which of the paper's stages are there.

    from uvr_analysis import measure_flows, stages_of
    flows = measure_flows(pipe, ["a cat on a chair", "a dog in the snow"], generate={"num_inference_steps": 20})
    print(flows.curve("text", "output").mean(0), stages_of(flows))

Importing this package is cheap; torch loads with the first name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .curves import Boundary, band, boundary
    from .flows import ROLES, Flows
    from .localisation import Localisation, localisation_of
    from .measure import measure_flows
    from .stages import Stage, stages_of

_HOMES = {
    "Boundary": "curves",
    "band": "curves",
    "boundary": "curves",
    "Flows": "flows",
    "ROLES": "flows",
    "Localisation": "localisation",
    "localisation_of": "localisation",
    "measure_flows": "measure",
    "Stage": "stages",
    "stages_of": "stages",
}
__all__ = [
    "ROLES",
    "Boundary",
    "Flows",
    "Localisation",
    "Stage",
    "band",
    "boundary",
    "localisation_of",
    "measure_flows",
    "stages_of",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
