"""The autoencoder on free sizes: a new decoder for the first edition's encoder, whose latent space stays in use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from ..training import Run, fit
from ..vae import to_tensor
from . import scenes
from .render import render


def batch(seed: int, size: int, crop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops (B, 3, crop, crop) in [-1, 1] around an object each; weights (B, 1, crop, crop), larger on small
    objects."""
    rng = np.random.default_rng([11, seed])
    images, weights = [], []
    for index in range(size):
        scene = scenes.sample(seed * size + index)
        image, masks = render(scene)
        item = int(rng.integers(len(masks)))
        weight = 1 + 2.0 * np.any(list(masks.values()), axis=0) + 2.0 * masks[item] * (scene.items[item].side < 30)
        ys, xs = np.nonzero(masks[item])
        y, x = (
            int(np.clip(np.mean(c) + rng.integers(-9, 10) - crop // 2, 0, side - crop))
            for c, side in zip((ys, xs), scene.canvas, strict=True)
        )
        images.append(image[y : y + crop, x : x + crop])
        weights.append(weight[y : y + crop, x : x + crop])
    return to_tensor(np.stack(images)), torch.from_numpy(np.stack(weights)[:, None]).float()


def train(out: Path, run: Run, start_from: Path, batch_size: int = 24, lr: float = 1e-3, crop: int = 40) -> None:
    """Train the decoder on crops, save (float16) in `out`.

    The encoder stays that of `start_from`, so every transformer of its latent space goes on unchanged.
    """
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(start_from).float()
    vae.encoder.requires_grad_(False)
    noise = 0.08 / vae.config.scaling_factor  # a transformer's latents are not exact
    run.folder.mkdir(parents=True, exist_ok=True)
    run.log(before=measure(vae))

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        images, weights = batch(step, batch_size, crop)
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mean
        latents = latents + noise * torch.rand(len(latents), 1, 1, 1) * torch.randn_like(latents)
        difference = (vae.decode(latents).sample - images) * weights
        return {"loss": difference.abs().mean() + difference.square().mean()}

    fit("vae-freeform", vae.decoder, loss_of, run, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4, warm=50)
    run.log(after=measure(vae))
    vae.half().save_pretrained(out)


@torch.no_grad()
def measure(vae: AutoencoderKL, count: int = 96) -> dict[str, float]:
    """PSNR in dB on held-out scenes: of whole pictures, of objects' pixels, of small objects' pixels."""
    drawn = [scenes.sample(seed, "heldout") for seed in range(count)]
    pictures, masks = zip(*(render(scene) for scene in drawn), strict=True)
    images = to_tensor(np.stack(pictures))
    decoded = torch.cat([vae.decode(vae.encode(x).latent_dist.mean).sample for x in images.split(16)]).clamp(-1, 1)
    error = ((decoded - images) / 2).square().mean(1).numpy()
    small = [
        np.any([m for i, m in mask.items() if scene.items[i].size == "small"] or [np.zeros(scene.canvas, bool)], axis=0)
        for scene, mask in zip(drawn, masks, strict=True)
    ]
    where = {
        "picture": np.ones_like(error, bool), "objects": np.stack([np.any(list(m.values()), axis=0) for m in masks]),
        "small": np.stack(small),
    }  # fmt: skip
    return {name: round(float(-10 * np.log10(error[mask].mean())), 2) for name, mask in where.items()}
