"""Families that the zoo's second edition adds: Z-Image (one stream, lists of pictures), FLUX.2 klein (four-axis ids).

As `architectures`: pictures are the same tokens everywhere, conditions come from the pipeline's own `encode_prompt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, Flux2KleinPipeline
from PIL import Image
from torch import nn

from ..architectures import GRID, Condition, Grid, WithAutoencoderKL, frozen, pack, unpack
from ..text import ZooTokenizer
from .chat import KLEIN_LAYERS

_LENGTH = 56  # tokens of a caption in its chat template


class ZImage(WithAutoencoderKL):
    """Z-Image: lists of pictures (C, 1, H, W), time turned round, captions of any length, the velocity negated."""

    transformer, pipeline = "ZImageTransformer2DModel", "ZImagePipeline"
    text = "qwen3"
    config: ClassVar[dict[str, Any]] = {
        "all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": 4, "dim": 128, "n_layers": 6,
        "n_refiner_layers": 1, "n_heads": 4, "n_kv_heads": 4, "cap_feat_dim": 128, "axes_dims": (8, 12, 12),
        "axes_lens": (512, 64, 64),
    }  # fmt: skip
    sampling: ClassVar[dict[str, Any]] = {
        "num_inference_steps": 20,
        "guidance_scale": 2.0,
        "max_sequence_length": _LENGTH,
    }

    @staticmethod
    def encoders(model: nn.Module, tokenizer: ZooTokenizer) -> dict[str, Any]:
        """The pipeline's text encoder (without its output layer) and tokenizer."""
        return {"text_encoder": model.model, "tokenizer": tokenizer}

    def vae(self, path: Path) -> nn.Module:
        return frozen(AutoencoderKL.from_pretrained(path).float())

    def encode(self, pipe: Any, captions: list[str], images: Sequence[Image.Image] | None) -> Condition:
        """The pipeline writes into the list of prompts, so it gets one of its own."""
        each, _ = pipe.encode_prompt(list(captions), do_classifier_free_guidance=False, max_sequence_length=_LENGTH)
        mask = torch.zeros(len(each), _LENGTH, device=each[0].device)
        text = torch.zeros(len(each), _LENGTH, each[0].shape[1], device=each[0].device)
        for row, tokens in enumerate(each):
            text[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return {"text": text, "mask": mask}

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
        lengths = condition["mask"].sum(1).long().tolist()
        captions = [text[:length] for text, length in zip(condition["text"], lengths, strict=True)]
        pictures = list(unpack(x, grid).unsqueeze(2).unbind(0))
        velocity = torch.stack(model(pictures, 1 - sigma, captions, return_dict=False)[0]).squeeze(2)
        return -pack(velocity)


class Flux2:
    """FLUX.2 klein: ids of four axes, an autoencoder that normalises packed latents, text of three layers."""

    transformer, pipeline, sees_image = "Flux2Transformer2DModel", "Flux2KleinPipeline", False
    text = "qwen3"
    config: ClassVar[dict[str, Any]] = {
        "patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 4, "attention_head_dim": 32,
        "num_attention_heads": 4, "joint_attention_dim": 384, "timestep_guidance_channels": 64,
        "axes_dims_rope": (8, 8, 8, 8), "guidance_embeds": False,
    }  # fmt: skip
    sampling: ClassVar[dict[str, Any]] = {
        "num_inference_steps": 20, "guidance_scale": 3.0, "max_sequence_length": _LENGTH,
        "text_encoder_out_layers": KLEIN_LAYERS,
    }  # fmt: skip

    @staticmethod
    def encoders(model: nn.Module, tokenizer: ZooTokenizer) -> dict[str, Any]:
        """The pipeline's text encoder and tokenizer."""
        return {"text_encoder": model, "tokenizer": tokenizer}

    def vae(self, path: Path) -> nn.Module:
        """The zoo's AutoencoderKL as FLUX.2's class: shift and scale become the batch norm's statistics."""
        plain = AutoencoderKL.from_pretrained(path).float()
        fields = ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "latent_channels",
                  "norm_num_groups", "sample_size", "use_quant_conv", "use_post_quant_conv",
                  "mid_block_add_attention")  # fmt: skip
        vae = AutoencoderKLFlux2(**{name: plain.config[name] for name in fields})
        missing, _ = vae.load_state_dict(plain.state_dict(), strict=False)
        if any(not name.startswith("bn.") for name in missing):
            raise ValueError(f"{path}: {type(plain).__name__} lacks {missing}")
        vae.bn.running_mean.fill_(plain.config.shift_factor)
        vae.bn.running_var.fill_(plain.config.scaling_factor**-2 - vae.config.batch_norm_eps)
        return frozen(vae)

    def fit(self, pipe: Any) -> None:
        pass

    def latents(self, pipe: Any, pixels: torch.Tensor) -> torch.Tensor:
        mean, variance = pipe.vae.bn.running_mean[0], pipe.vae.bn.running_var[0] + pipe.vae.config.batch_norm_eps
        return (pipe.vae.encode(pixels).latent_dist.mean - mean) / variance.sqrt()

    def encode(self, pipe: Any, captions: list[str], images: Sequence[Image.Image] | None) -> Condition:
        text, _ = pipe.encode_prompt(captions, max_sequence_length=_LENGTH, text_encoder_out_layers=KLEIN_LAYERS)
        return {"text": text}

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
        text, ids = condition["text"], Flux2KleinPipeline._prepare_latent_ids(x.new_zeros(len(x), 1, *grid))
        hidden = x
        if reference is not None:
            behind = ids.clone()
            behind[..., 0] += 10  # as Flux2KleinPipeline counts its first picture
            hidden, ids = torch.cat([x, reference], 1), torch.cat([ids, behind], 1)
        velocity = model(
            hidden_states=hidden,
            timestep=sigma,
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=Flux2KleinPipeline._prepare_text_ids(text).to(x.device),
            img_ids=ids.to(x.device),
            return_dict=False,
        )[0]
        return velocity[:, : x.shape[1]]


FAMILIES: dict[str, Any] = {"z-image": ZImage(), "flux2": Flux2()}
