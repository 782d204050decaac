"""What the zoo must know of each model family: its classes, how to call its transformer, how to encode its text.

Pictures are the same tokens everywhere: patches of 2x2x4 latents, (B, N, 16), N = 64 on the first edition's 8x8 grid.
`predict` takes and gives those, whatever the class wants; conditions come from the pipeline's own `encode_prompt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import nn

from . import storage
from .text import ZooTokenizer

Condition = dict[str, torch.Tensor]
Grid = tuple[int, int]  # rows and columns of patches
SIDE = 8  # patches
GRID: Grid = (SIDE, SIDE)


class Architecture(Protocol):
    """One way of calling a transformer class."""

    transformer: str  # class name in diffusers
    pipeline: str  # class name in diffusers
    sees_image: bool  # whether the text encoder is shown the source image

    def parts(self, folder: Path) -> dict[str, Any]:
        """The pipeline's other components, from the zoo's shared folder; float32, frozen, in eval mode."""
        ...

    def fit(self, pipe: Any) -> None:
        """Tell an assembled pipeline what its class takes to be that of the published checkpoint."""
        ...

    def latents(self, pipe: Any, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, 8h, 8w) in [-1, 1] -> normalised latents (B, 4, 2h, 2w), the mean of the encoder's posterior."""
        ...

    def encode(self, pipe: Any, captions: list[str], images: Sequence[Image.Image] | None) -> Condition:
        """{"text": (B, T, C), and "pooled" (B, P) or "mask" (B, T) where the class has one}."""
        ...

    def predict(
        self,
        model: nn.Module,
        x: torch.Tensor,
        sigma: torch.Tensor,
        condition: Condition,
        reference: torch.Tensor | None,
        guidance: torch.Tensor,
        grid: Grid = GRID,
    ) -> torch.Tensor:
        """Velocity (B, N, 16) at noise level sigma (B,); `reference` (B, N, 16) are the source image's tokens."""
        ...


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, 2h, 2w) latents -> (B, h*w, 4C) tokens, in the order of FluxPipeline._pack_latents."""
    b, c, h, w = latents.shape
    latents = latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return latents.reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack(tokens: torch.Tensor, grid: Grid = GRID) -> torch.Tensor:
    """(B, h*w, 4C) tokens of a grid (h, w) -> (B, C, 2h, 2w) latents; the inverse of `pack`."""
    b, _, width = tokens.shape
    latents = tokens.view(b, *grid, width // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return latents.reshape(b, width // 4, 2 * grid[0], 2 * grid[1])


def image_ids(height: int, width: int, device: torch.device | str = "cpu", image: int = 0) -> torch.Tensor:
    """(h*w, 3) position ids of image tokens: (image, row, column); image 0 is the output, 1 the source."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.full_like(rows, image), rows, columns], -1).reshape(-1, 3).float().to(device)


def frozen(module: nn.Module) -> nn.Module:
    """The module in eval mode, without gradients."""
    return module.eval().requires_grad_(False)


def load_part(kind: str, path: Path) -> nn.Module:
    """A component of a class of diffusers or transformers, in float32 and frozen."""
    import diffusers
    import transformers

    if diffusers_class := getattr(diffusers, kind, None):
        return frozen(storage.load(diffusers_class, path))
    return frozen(getattr(transformers, kind).from_pretrained(path, dtype=torch.float32))


class WithAutoencoderKL:
    """Families whose latents are an AutoencoderKL's, shifted and scaled, and whose text encoder sees no picture."""

    sees_image = False

    def fit(self, pipe: Any) -> None:
        pass

    def latents(self, pipe: Any, pixels: torch.Tensor) -> torch.Tensor:
        config = pipe.vae.config
        return (pipe.vae.encode(pixels).latent_dist.mean - config.shift_factor) * config.scaling_factor


class Flux(WithAutoencoderKL):
    """FLUX.1, and Kontext, which puts the source's tokens behind the output's."""

    transformer = "FluxTransformer2DModel"

    def __init__(self, pipeline: str = "FluxPipeline", text: str = "."):
        self.pipeline, self.text = pipeline, text

    def parts(self, folder: Path) -> dict[str, Any]:
        text = folder / self.text
        clip = load_part("CLIPTextModel", text / "text_encoder")
        t5 = load_part("T5EncoderModel", text / "text_encoder_2")
        tokenizer = ZooTokenizer.from_pretrained(folder / "tokenizer")
        return {"vae": load_part("AutoencoderKL", folder / "vae"), **self.encoders(clip, t5, tokenizer)}

    @staticmethod
    def encoders(clip: Any, t5: nn.Module, tokenizer: ZooTokenizer) -> dict[str, Any]:
        """The pipeline's text encoders and tokenizers."""
        return {"text_encoder": clip, "text_encoder_2": t5, "tokenizer": tokenizer, "tokenizer_2": tokenizer}

    def encode(self, pipe: Any, captions: list[str], images: Sequence[Image.Image] | None) -> Condition:
        text, pooled, _ = pipe.encode_prompt(captions, captions)
        return {"text": text, "pooled": pooled}

    def predict(
        self,
        model: nn.Module,
        x: torch.Tensor,
        sigma: torch.Tensor,
        condition: Condition,
        reference: torch.Tensor | None,
        guidance: torch.Tensor,
        grid: Grid = GRID,
    ) -> torch.Tensor:
        ids, hidden = [image_ids(*grid, x.device)], x
        if reference is not None:
            ids.append(image_ids(*grid, x.device, image=1))
            hidden = torch.cat([x, reference], 1)
        text = condition["text"]
        velocity = model(
            hidden_states=hidden,
            timestep=sigma,
            encoder_hidden_states=text,
            pooled_projections=condition["pooled"],
            guidance=guidance if model.config.guidance_embeds else None,
            img_ids=torch.cat(ids),
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device),
            return_dict=False,
        )[0]
        return velocity[:, : x.shape[1]]


class SD3(WithAutoencoderKL):
    """Stable Diffusion 3 and 3.5: latents as a picture, time in 0..1000.

    Both CLIP encoders are the zoo's one CLIP model, its projection the identity.
    """

    transformer, pipeline = "SD3Transformer2DModel", "StableDiffusion3Pipeline"

    def parts(self, folder: Path) -> dict[str, Any]:
        clip = load_part("CLIPTextModel", folder / "text_encoder")
        t5 = load_part("T5EncoderModel", folder / "text_encoder_2")
        tokenizer = ZooTokenizer.from_pretrained(folder / "tokenizer")
        return {"vae": load_part("AutoencoderKL", folder / "vae"), **self.encoders(clip, t5, tokenizer)}

    @staticmethod
    def encoders(clip: Any, t5: nn.Module, tokenizer: ZooTokenizer) -> dict[str, Any]:
        """The pipeline's three text encoders and tokenizers."""
        from transformers import CLIPTextModelWithProjection

        config = clip.config.__class__.from_dict({**clip.config.to_dict(), "projection_dim": clip.config.hidden_size})
        projected = CLIPTextModelWithProjection(config)
        projected.text_model.load_state_dict(clip.state_dict())
        with torch.no_grad():
            projected.text_projection.weight.copy_(torch.eye(config.hidden_size))
        tokenizers = dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3"), tokenizer)
        return {"text_encoder": frozen(projected), "text_encoder_2": projected, "text_encoder_3": t5, **tokenizers}

    def encode(self, pipe: Any, captions: list[str], images: Sequence[Image.Image] | None) -> Condition:
        text, _, pooled, _ = pipe.encode_prompt(captions, None, None, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled}

    def predict(
        self,
        model: nn.Module,
        x: torch.Tensor,
        sigma: torch.Tensor,
        condition: Condition,
        reference: torch.Tensor | None,
        guidance: torch.Tensor,
        grid: Grid = GRID,
    ) -> torch.Tensor:
        velocity = model(
            hidden_states=unpack(x, grid),
            timestep=sigma * 1000,
            encoder_hidden_states=condition["text"],
            pooled_projections=condition["pooled"],
            return_dict=False,
        )[0]
        return pack(velocity)


class Qwen:
    """Qwen-Image and its editing model, whose text encoder sees the source image too. Text has a padding mask."""

    transformer = "QwenImageTransformer2DModel"

    def __init__(self, pipeline: str = "QwenImagePipeline", length: int = 32):
        self.pipeline, self.length = pipeline, length
        self.sees_image = "Edit" in pipeline

    def parts(self, folder: Path) -> dict[str, Any]:
        from .vision_text import processor

        tokenizer = ZooTokenizer.from_pretrained(folder / "vision_tokenizer")
        parts = {
            "vae": load_part("AutoencoderKLQwenImage", folder / "vae_qwen"),
            "text_encoder": load_part("Qwen2_5_VLForConditionalGeneration", folder / "vision_text"),
            "tokenizer": tokenizer,
        }
        return parts | ({"processor": processor(tokenizer)} if self.sees_image else {})

    def latents(self, pipe: Any, pixels: torch.Tensor) -> torch.Tensor:
        config = pipe.vae.config
        mean, std = (
            torch.tensor(v, device=pixels.device).view(-1, 1, 1) for v in (config.latents_mean, config.latents_std)
        )
        return (pipe.vae.encode(pixels[:, :, None]).latent_dist.mean[:, :, 0] - mean) / std

    def fit(self, pipe: Any) -> None:
        from .vision_text import head_of

        head = head_of(pipe.prompt_template_encode)
        pipe.prompt_template_encode_start_idx = len(pipe.tokenizer(head).input_ids)

    def encode(self, pipe: Any, captions: list[str], images: Sequence[Image.Image] | None) -> Condition:
        seen = {} if images is None else {"image": list(images)}
        text, mask = pipe.encode_prompt(prompt=captions, **seen)
        mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device) if mask is None else mask
        missing = self.length - text.shape[1]
        if missing < 0:
            raise ValueError(f"a prompt has {text.shape[1]} tokens, the zoo was made for {self.length}")
        return {
            "text": nn.functional.pad(text, (0, 0, 0, missing)),
            "mask": nn.functional.pad(mask, (0, missing)).to(text.dtype),
        }

    def predict(
        self,
        model: nn.Module,
        x: torch.Tensor,
        sigma: torch.Tensor,
        condition: Condition,
        reference: torch.Tensor | None,
        guidance: torch.Tensor,
        grid: Grid = GRID,
    ) -> torch.Tensor:
        mask = condition["mask"] > 0
        longest = int(mask.sum(1).max())
        shapes = [(1, *grid)] * (1 if reference is None else 2)
        velocity = model(
            hidden_states=x if reference is None else torch.cat([x, reference], 1),
            timestep=sigma,
            encoder_hidden_states=condition["text"][:, :longest],
            encoder_hidden_states_mask=mask[:, :longest],
            img_shapes=[shapes] * len(x),
            return_dict=False,
        )[0]
        return velocity[:, : x.shape[1]]


ARCHITECTURES: dict[str, Architecture] = {
    "flux": Flux(),
    "flux-kontext": Flux("FluxKontextPipeline", text="edit"),
    "sd3": SD3(),
    "qwen-image": Qwen(),
    "qwen-image-edit": Qwen("QwenImageEditPipeline", length=48),
}
