"""The hooks. Targets are strings, so that listing plugins imports neither torch nor the modules below."""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

hookimpl = pluggy.HookimplMarker("uvr")


@hookimpl
def uvr_detectors() -> Mapping[str, object]:
    return {"head-max": "uvr_example_plugin.detector:HeadMax"}


@hookimpl
def uvr_policies() -> Mapping[str, object]:
    return {"fade": "uvr_example_plugin.policy:Fade"}
