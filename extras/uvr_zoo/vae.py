"""The zoo's image autoencoder: a small real AutoencoderKL, trained on scenes. 64x64x3 pixels <-> 16x16x4 latents."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderKLQwenImage
from torch import nn

from . import scenes, storage
from .training import Run, fit

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (24, 48, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": scenes.SIZE,
}


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def batch(seed: int, size: int, crop: int = scenes.SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops (B, 3, crop, crop) in [-1, 1] around an object each; weights (B, 1, crop, crop): 3 on it, 1 elsewhere."""
    rng = np.random.default_rng([5, seed])
    images, weights = [], []
    for index in range(size):
        image, masks = scenes.render(scenes.sample(seed * size + index))
        weight = 1 + 2 * np.any(list(masks.values()), axis=0)
        ys, xs = np.nonzero(masks[int(rng.integers(len(masks)))])
        y, x = (int(np.clip(np.mean(c) + rng.integers(-9, 10) - crop // 2, 0, scenes.SIZE - crop)) for c in (ys, xs))
        images.append(image[y : y + crop, x : x + crop])
        weights.append(weight[y : y + crop, x : x + crop])
    return to_tensor(np.stack(images)), torch.from_numpy(np.stack(weights)[:, None]).float()


def train(
    out: Path, run: Run, batch_size: int = 32, lr: float = 2e-3, crop: int = 32, start_from: Path | None = None
) -> None:
    """Train on crops, measure the latents' statistics, save (float16) in `out`."""
    torch.manual_seed(0)
    vae = AutoencoderKL(**CONFIG) if start_from is None else AutoencoderKL.from_pretrained(start_from).train()

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        images, weights = batch(step, batch_size, crop)
        posterior = vae.encode(images).latent_dist
        difference = (vae.decode(posterior.sample()).sample - images) * weights
        kl = 2e-4 * posterior.kl().mean() / images[0].numel()
        return {"loss": difference.abs().mean() + difference.square().mean() + kl}

    fit("vae", vae, loss_of, run, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4, warm=50)
    vae.eval()
    with torch.no_grad():
        images = _unseen()
        latents = vae.encode(images).latent_dist.mean
        vae.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))
        run.log(psnr=_psnr(vae.decode(latents).sample, images), latent_std=latents.std((0, 2, 3)).tolist())
    vae.half().save_pretrained(out)


def _unseen() -> torch.Tensor:
    """Whole pictures (128, 3, 64, 64) from seeds that training does not reach."""
    return torch.cat([batch(10_000_000 + i, 64)[0] for i in range(4)])


def _psnr(decoded: torch.Tensor, images: torch.Tensor) -> float:
    """Of pictures in [-1, 1], in dB."""
    return round(float(10 * torch.log10(4 / (decoded.clamp(-1, 1) - images).square().mean())), 2)


QWEN = {
    "base_dim": 20,
    "z_dim": 4,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, False],
}


def _one_frame(vae: nn.Module) -> None:
    """Compute every causal 3-D convolution of a one-frame input as the 2-D one that it is (2.3 times faster here).

    The frames before the only one are zeros, so that of a kernel's temporal slices the last alone counts.
    """

    def forward(conv: nn.Conv3d, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        padding = (conv._padding[2], conv._padding[0])
        return F.conv2d(x[:, :, 0], conv.weight[:, :, -1], conv.bias, conv.stride[1:], padding)[:, :, None]

    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.forward = functools.partial(forward, module)  # type: ignore[method-assign]


def train_qwen(
    out: Path, run: Run, teacher: AutoencoderKL, batch_size: int = 24, lr: float = 2e-3, crop: int = 32
) -> None:
    """An AutoencoderKLQwenImage that speaks the teacher's latents: same encoder map, same decoder map, other class.

    So every zoo pipeline draws in one latent space, and what one transformer learned can start another. Trains on
    crops and saves (float16, packed) in `out`.
    """
    torch.manual_seed(0)
    config = teacher.config
    vae = AutoencoderKLQwenImage(
        **QWEN, latents_mean=[config.shift_factor] * 4, latents_std=[1 / config.scaling_factor] * 4
    )
    fast = copy.deepcopy(vae)
    _one_frame(fast)

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        images, weights = batch(step, batch_size, crop)
        with torch.no_grad():
            posterior = teacher.encode(images).latent_dist
            latents = posterior.mean * config.scaling_factor
        encoded = fast.encode(images[:, :, None]).latent_dist.mean[:, :, 0] * config.scaling_factor
        noisy = (latents + 0.05 * torch.randn_like(latents)) / config.scaling_factor
        difference = (fast.decode(noisy[:, :, None]).sample[:, :, 0] - images) * weights
        apart = (encoded - latents).square().mean()
        return {"loss": difference.abs().mean() + difference.square().mean() + apart, "latents": apart.detach()}

    fit("vae-qwen", fast, loss_of, run, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4, warm=50)
    vae.load_state_dict(fast.state_dict())
    vae.eval()
    with torch.no_grad():
        images = _unseen()
        latents = teacher.encode(images).latent_dist.mean
        encoded = vae.encode(images[:, :, None]).latent_dist.mean[:, :, 0]
        apart = float((encoded - latents).square().mean() / latents.var())
        run.log(psnr=_psnr(vae.decode(latents[:, :, None]).sample[:, :, 0], images), latents_apart=round(apart, 4))
    storage.pack(vae, out)
