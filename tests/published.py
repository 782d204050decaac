"""The published sizes: transformer configurations as their makers released them, and one forward's inputs for each.

A configuration holds the keyword arguments of the diffusers class, from `transformer/config.json` of the named
Hugging Face repository. Data only; nothing here is downloaded, and no weights exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import diffusers
import torch

SIGMA = 0.75  # exact in float32, as is 750 / 1000
SIDE = 64  # patches along each side of a picture of 1024x1024 pixels: VAE factor 8, patches of 2x2
PATCHES = SIDE * SIDE


@attrs.frozen
class Published:
    """A released model and what UVR must read off one forward of it at 1024x1024.

    Attributes:
        source: Hugging Face repository; model: diffusers class; config: its keyword arguments.
        adapter: the adapter that must recognise it; taps: number of joint attention blocks.
        text: text tokens in a forward; padding: how many of them, at the end, are masked out.
        references: number of reference images, each 1024x1024.
        image_at: end of the key axis at which the image tokens lie.
        side_attention: attention modules that run and are no joint attention.
    """

    source: str
    model: str
    config: Mapping[str, Any]
    adapter: str
    taps: int
    text: int
    padding: int = 0
    references: int = 0
    image_at: str = "end"
    side_attention: int = 0

    @property
    def image(self) -> int:
        """Image tokens."""
        return PATCHES * (1 + self.references)

    def build(self) -> torch.nn.Module:
        """The transformer without memory: all parameters and buffers on the meta device."""
        with torch.device("meta"):
            return getattr(diffusers, self.model)(**self.config).eval()

    def inputs(self) -> dict[str, Any]:
        """Arguments of one forward as the family's pipeline passes them, on the CPU."""
        return _INPUTS[self.adapter](self)


def _flux(model: Published) -> dict[str, Any]:
    """As FluxPipeline and FluxKontextPipeline: packed latents, ids (image number, row, column), t / 1000."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    pictures = [
        torch.stack([torch.full_like(rows, number), rows, columns], -1).reshape(PATCHES, 3)
        for number in range(1 + model.references)
    ]
    return {
        "hidden_states": torch.empty(1, model.image, 64),
        "encoder_hidden_states": torch.empty(1, model.text, model.config["joint_attention_dim"]),
        "pooled_projections": torch.empty(1, model.config["pooled_projection_dim"]),
        "timestep": torch.tensor([SIGMA]),
        "guidance": torch.tensor([3.5]),
        "img_ids": torch.cat(pictures).float(),
        "txt_ids": torch.zeros(model.text, 3),
    }


def _sd3(model: Published) -> dict[str, Any]:
    """As StableDiffusion3Pipeline: latents that the model cuts into patches itself, t in 0..1000."""
    side = SIDE * model.config["patch_size"]
    return {
        "hidden_states": torch.empty(1, model.config["in_channels"], side, side),
        "encoder_hidden_states": torch.empty(1, model.text, model.config["joint_attention_dim"]),
        "pooled_projections": torch.empty(1, model.config["pooled_projection_dim"]),
        "timestep": torch.tensor([1000 * SIGMA]),
    }


def _qwen(model: Published) -> dict[str, Any]:
    """As QwenImagePipeline and QwenImageEditPipeline: packed latents, img_shapes, t / 1000, padded text masked."""
    mask = torch.ones(1, model.text, dtype=torch.long)
    mask[:, model.text - model.padding :] = 0
    return {
        "hidden_states": torch.empty(1, model.image, model.config["in_channels"]),
        "encoder_hidden_states": torch.empty(1, model.text, model.config["joint_attention_dim"]),
        "encoder_hidden_states_mask": mask if model.padding else None,
        "timestep": torch.tensor([SIGMA]),
        "img_shapes": [[(1, SIDE, SIDE)] * (1 + model.references)],
        **({"txt_seq_lens": [model.text]} if diffusers.__version__ < "0.37" else {}),  # later ones read the mask
    }


_INPUTS = {"flux": _flux, "sd3": _sd3, "qwen-image": _qwen}

# black-forest-labs/FLUX.1-dev, transformer/config.json; black-forest-labs/FLUX.1-Kontext-dev says the same
_FLUX_DEV = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}

# stabilityai/stable-diffusion-3-medium-diffusers, transformer/config.json
_SD3_MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}

# stabilityai/stable-diffusion-3.5-large, transformer/config.json
_SD35_LARGE = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 38,
    "attention_head_dim": 64,
    "num_attention_heads": 38,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 2432,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}

# stabilityai/stable-diffusion-3.5-medium, transformer/config.json
_SD35_MEDIUM = _SD3_MEDIUM | {
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}

# Qwen/Qwen-Image, transformer/config.json; Qwen/Qwen-Image-Edit says the same
_QWEN_IMAGE = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
}

_FLUX, _SD3, _QWEN = "FluxTransformer2DModel", "SD3Transformer2DModel", "QwenImageTransformer2DModel"
PUBLISHED = (
    Published("black-forest-labs/FLUX.1-dev", _FLUX, _FLUX_DEV, "flux", taps=57, text=512),
    Published("black-forest-labs/FLUX.1-Kontext-dev", _FLUX, _FLUX_DEV, "flux", taps=57, text=512, references=1),
    Published(
        "stabilityai/stable-diffusion-3-medium-diffusers", _SD3, _SD3_MEDIUM, "sd3", taps=24, text=333,
        image_at="start",
    ),
    Published(
        "stabilityai/stable-diffusion-3.5-large", _SD3, _SD35_LARGE, "sd3", taps=38, text=333, image_at="start"
    ),
    Published(
        "stabilityai/stable-diffusion-3.5-medium", _SD3, _SD35_MEDIUM, "sd3", taps=24, text=333, image_at="start",
        side_attention=13,
    ),
    Published("Qwen/Qwen-Image", _QWEN, _QWEN_IMAGE, "qwen-image", taps=60, text=40),
    Published("Qwen/Qwen-Image-Edit", _QWEN, _QWEN_IMAGE, "qwen-image", taps=60, text=40, padding=8, references=1),
)  # fmt: skip
