"""How analysis comes into UVR: the "uvr" entry-point group, like anyone's. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

hookimpl = pluggy.HookimplMarker("uvr")


@hookimpl
def uvr_commands() -> Mapping[str, tuple[object, str]]:
    return {"analyze": ("uvr_analysis.command:analyze", "Draw what flows where, block by block and step by step.")}


@hookimpl
def uvr_pages() -> Mapping[str, object]:
    return {"uvr.analysis/1": "uvr_analysis.summary:show"}
