"""Adapters that come in the box, registered through the "uvr" entry-point group like anyone's. One file per family."""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

hookimpl = pluggy.HookimplMarker("uvr")


@hookimpl
def uvr_adapters() -> Mapping[str, object]:
    return {
        "auraflow": "uvr_adapters.auraflow:AURAFLOW",
        "bria": "uvr_adapters.bria:BRIA",
        "bria-fibo": "uvr_adapters.bria_fibo:BRIA_FIBO",
        "bria-fibo2": "uvr_adapters.bria_fibo2:BRIA_FIBO2",
        "chroma": "uvr_adapters.chroma:CHROMA",
        "cogview3plus": "uvr_adapters.cogview3plus:COGVIEW3PLUS",
        "cogview4": "uvr_adapters.cogview4:COGVIEW4",
        "ernie-image": "uvr_adapters.ernie_image:ERNIE_IMAGE",
        "flux": "uvr_adapters.flux:FLUX",
        "flux2": "uvr_adapters.flux2:FLUX2",
        "flux3": "uvr_adapters.flux3:FLUX3",
        "glm-image": "uvr_adapters.glm_image:GLM_IMAGE",
        "hidream": "uvr_adapters.hidream:HIDREAM",
        "hunyuan-image": "uvr_adapters.hunyuan_image:HUNYUAN_IMAGE",
        "ideogram4": "uvr_adapters.ideogram4:IDEOGRAM4",
        "joyimage-edit": "uvr_adapters.joyimage_edit:JOYIMAGE_EDIT",
        "joyimage-edit-plus": "uvr_adapters.joyimage_edit_plus:JOYIMAGE_EDIT_PLUS",
        "krea2": "uvr_adapters.krea2:KREA2",
        "longcat-image": "uvr_adapters.longcat_image:LONGCAT_IMAGE",
        "lumina2": "uvr_adapters.lumina2:LUMINA2",
        "nucleus-image": "uvr_adapters.nucleus_image:NUCLEUS_IMAGE",
        "omnigen": "uvr_adapters.omnigen:OMNIGEN",
        "ovis-image": "uvr_adapters.ovis_image:OVIS_IMAGE",
        "prx": "uvr_adapters.prx:PRX",
        "qwen-image": "uvr_adapters.qwen_image:QWEN_IMAGE",
        "qwen-image-2.1": "uvr_adapters.qwen_image21:QWEN_IMAGE21",
        "sd3": "uvr_adapters.sd3:SD3",
        "z-image": "uvr_adapters.z_image:Z_IMAGE",
    }


@hookimpl
def uvr_unfit() -> Mapping[str, str]:
    from .unfit import UNFIT

    return UNFIT
