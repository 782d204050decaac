"""The hook. Its target is a string, so that listing plugins does not import torch."""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

hookimpl = pluggy.HookimplMarker("uvr")


@hookimpl
def uvr_adapters() -> Mapping[str, object]:
    return {"hunyuan-video": "uvr_example_adapter.hunyuan_video:HUNYUAN_VIDEO"}
