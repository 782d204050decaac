"""Adapters that come in the box, registered through the "uvr" entry-point group like anyone's. One file per family."""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

hookimpl = pluggy.HookimplMarker("uvr")


@hookimpl
def uvr_adapters() -> Mapping[str, object]:
    return {
        "flux": "uvr_adapters.flux:FLUX",
        "sd3": "uvr_adapters.sd3:SD3",
        "qwen-image": "uvr_adapters.qwen_image:QWEN_IMAGE",
    }
