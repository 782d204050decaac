"""Train a zoo transformer: rectified flow on the latents of scenes, then guidance distillation.

    uvr zoo train flux --minutes 60 --resume

A run lives in a folder. `checkpoint.pt` there (model, EMA, optimisers, random state, step, seconds spent) is
replaced atomically every two minutes and on SIGINT/SIGTERM, so that a run stops and resumes at any moment;
`log.jsonl` has one line per hundred steps, and one per fidelity check.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from . import scenes
from .muon import Muon
from .recipes import Recipe
from .text import MAX_TOKENS
from .vae import to_tensor


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, 2h, 2w) latents -> (B, h*w, 4C) tokens, in the order of FluxPipeline._pack_latents."""
    b, c, h, w = latents.shape
    latents = latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return latents.reshape(b, (h // 2) * (w // 2), 4 * c)


def image_ids(height: int, width: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """(h*w, 3) position ids of the output tokens: (0, row, column)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float().to(device)


@torch.no_grad()
def encode_text(parts: Any, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions -> T5 states (B, 32, 128) and CLIP pooled vectors (B, 64), as FluxPipeline.encode_prompt does."""
    ids = parts.tokenizer_2(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    device = next(parts.text_encoder_2.parameters()).device
    hidden = parts.text_encoder_2(ids.to(device))[0]
    return hidden, parts.text_encoder(ids.to(device)).pooler_output


@torch.no_grad()
def encode_scenes(parts: Any, recipe: Recipe, device: str, cache: Path | None = None) -> dict[str, torch.Tensor]:
    """Render and encode the recipe's training scenes: latents, text, pooled and patch weights (1 or 2)."""
    if cache is not None and cache.exists():
        return torch.load(cache, weights_only=True)
    columns: dict[str, list[torch.Tensor]] = {"x": [], "text": [], "pooled": [], "weight": []}
    shift, scale = parts.vae.config.shift_factor, parts.vae.config.scaling_factor
    for start in range(0, recipe.scenes, 64):
        seeds = range(start, min(start + 64, recipe.scenes))
        drawn = [scenes.sample(i, objects=recipe.objects, styles=recipe.styles) for i in seeds]
        images, masks = zip(*(scenes.render(s) for s in drawn), strict=True)
        latents = parts.vae.encode(to_tensor(np.stack(images)).to(device)).latent_dist.mean
        text, pooled = encode_text(parts, [s.caption for s in drawn])
        weight = [1 + scenes.patch_mask(np.any(list(m.values()), axis=0)).reshape(-1) for m in masks]
        columns["x"].append(pack((latents - shift) * scale).half().cpu())
        columns["text"].append(text.half().cpu())
        columns["pooled"].append(pooled.half().cpu())
        columns["weight"].append(torch.tensor(np.stack(weight)).half())
    data = {name: torch.cat(values) for name, values in columns.items()}
    if cache is not None:
        temporary = cache.with_suffix(".tmp")
        torch.save(data, temporary)
        os.replace(temporary, cache)
    return data


def _optimisers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon on the matrices inside the blocks, AdamW on everything else (embeddings, modulation, norms, output)."""
    muon, adam = [], []
    for name, parameter in model.named_parameters():
        inside = "transformer_blocks" in name and parameter.ndim == 2 and "norm" not in name
        (muon if inside else adam).append(parameter)
    return [
        Muon(muon, lr=lr),
        torch.optim.AdamW(adam, lr=lr / 2, betas=(0.9, 0.98), weight_decay=0.01),
    ]


class Trainer:
    """One training run in a folder; see the module's docstring."""

    def __init__(self, recipe: Recipe, parts: Any, folder: Path, *, device: str = "cpu", resume: bool = False):
        self.recipe, self.parts, self.folder, self.device = recipe, parts, folder, device
        folder.mkdir(parents=True, exist_ok=True)
        for part in vars(parts).values():
            if isinstance(part, nn.Module):
                part.to(device)
        torch.manual_seed(recipe.seed)
        self.model = FluxTransformer2DModel(**recipe.transformer).to(device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimisers = _optimisers(self.model, recipe.learning_rate)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.step, self.seconds = 0, 0.0
        self.checkpoint = folder / "checkpoint.pt"
        self._stop = False
        if resume and self.checkpoint.exists():
            self._load()
        elif self.checkpoint.exists():
            raise FileExistsError(f"{self.checkpoint} exists: pass --resume to go on from it, or name another folder")
        self.data = encode_scenes(parts, recipe, device, folder / "scenes.pt")
        self.empty = encode_text(parts, [""])

    # -- state
    def save(self) -> None:
        """Write the checkpoint; a reader sees the old one or the new one, never half of it."""
        state = {
            "model": self.model.state_dict(), "ema": self.ema.state_dict(), "step": self.step, "seconds": self.seconds,
            "optimisers": [o.state_dict() for o in self.optimisers], "generator": self.generator.get_state(),
        }  # fmt: skip
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        self.step, self.seconds = state["step"], state["seconds"]

    def log(self, **record: Any) -> None:
        record = {"step": self.step, "seconds": round(self.seconds + self._elapsed(), 1), **record}
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)

    def _elapsed(self) -> float:
        return time.monotonic() - self._start if hasattr(self, "_start") else 0.0

    # -- the two losses
    def _draw(self, shift: float) -> dict[str, torch.Tensor]:
        size = self.recipe.batch_size
        index = torch.randint(len(self.data["x"]), (size,), generator=self.generator)
        row = {name: column[index].float().to(self.device) for name, column in self.data.items()}
        sigma = torch.sigmoid(torch.randn(size, generator=self.generator))
        flat = torch.rand(size, generator=self.generator)
        sigma = torch.where(torch.rand(size, generator=self.generator) < 0.25, flat, sigma)
        row["sigma"] = (shift * sigma / (1 + (shift - 1) * sigma)).to(self.device)
        row["noise"] = torch.randn(row["x"].shape, generator=self.generator).to(self.device)
        chance = torch.rand(2, size, generator=self.generator).to(self.device)
        row["no_text"] = chance[0] < self.recipe.drop_text
        row["no_pooled"] = chance[1] < self.recipe.drop_pooled
        return row

    def predict(
        self, model: nn.Module, x: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor, pooled: torch.Tensor,
        guidance: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Velocity (B, 64, 16) of FluxTransformer2DModel at noise level sigma (B,) in 0..1."""
        side = int(x.shape[1] ** 0.5)
        ids = image_ids(side, side, self.device)
        txt_ids = torch.zeros(text.shape[1], 3, device=self.device)
        return model(
            hidden_states=x, timestep=sigma, encoder_hidden_states=text, pooled_projections=pooled,
            guidance=guidance, img_ids=ids, txt_ids=txt_ids, return_dict=False,
        )[0]  # fmt: skip

    def flow_loss(self) -> torch.Tensor:
        """Rectified flow: x_t = (1-sigma) x + sigma e, target e - x; objects' patches weigh double."""
        row = self._draw(1.5)
        text = torch.where(row["no_text"][:, None, None], self.empty[0], row["text"])
        pooled = torch.where((row["no_text"] | row["no_pooled"])[:, None], self.empty[1], row["pooled"])
        sigma = row["sigma"][:, None, None]
        x = (1 - sigma) * row["x"] + sigma * row["noise"]
        velocity = self.predict(self.model, x, row["sigma"], text, pooled, torch.ones_like(row["sigma"]))
        error = (velocity - (row["noise"] - row["x"])).square().mean(-1)
        return (error * row["weight"]).sum() / row["weight"].sum()

    def distillation_loss(self, teacher: nn.Module) -> torch.Tensor:
        """Guidance distillation (Meng et al. 2023): one pass at scale w matches u + w (c - u) of the teacher."""
        row = self._draw(1.5)
        low, high = self.recipe.guidance
        scale = low + (high - low) * torch.rand(len(row["x"]), generator=self.generator).to(self.device)
        sigma = row["sigma"][:, None, None]
        x = (1 - sigma) * row["x"] + sigma * row["noise"]
        empty = self.empty[0].expand(len(x), -1, -1), self.empty[1].expand(len(x), -1)
        one = torch.ones_like(scale)
        with torch.no_grad():
            conditional = self.predict(teacher, x, row["sigma"], row["text"], row["pooled"], one)
            unconditional = self.predict(teacher, x, row["sigma"], *empty, one)
            target = unconditional + scale[:, None, None] * (conditional - unconditional)
        return (self.predict(self.model, x, row["sigma"], row["text"], row["pooled"], scale) - target).square().mean()

    # -- the loop
    def run(
        self, minutes: float, *, distil: bool = False, decay: float = 0.25,
        fidelity: Callable[[Any], dict[str, float]] | None = None, fidelity_every: float = 10.0,
    ) -> None:  # fmt: skip
        """Train for `minutes` of wall time; the learning rate falls linearly over the last `decay` of them."""
        teacher = copy.deepcopy(self.ema).eval() if distil else None
        if distil:
            self.model.load_state_dict(self.ema.state_dict())
        previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        self._start, self._stop = time.monotonic(), False
        saved = checked = first = 0.0
        losses: list[float] = []
        try:
            for part in self._progress(minutes * 60):
                warm = min(1.0, (len(losses) + first + 1) / 100)
                rate = warm * min(1.0, max(1 - part, 0.01) / decay) * (0.5 if distil else 1.0)
                losses.append(self.train_step(rate, teacher))
                if self.step % 100 == 0:
                    self.log(loss=float(np.mean(losses)), distil=distil, lr=rate * self.recipe.learning_rate)
                    first, losses = 100, []
                if self._elapsed() - saved > 120:
                    saved = self._elapsed()
                    self.save()
                if fidelity is not None and self._elapsed() - checked > fidelity_every * 60:
                    checked = self._elapsed()
                    self.log(fidelity=fidelity(self.ema))
        finally:
            self.seconds += self._elapsed()
            del self._start
            self.save()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _progress(self, total: float) -> Iterator[float]:
        while not self._stop and (elapsed := self._elapsed()) < total:
            yield elapsed / total

    def _on_signal(self, number: int, frame: Any) -> None:
        self._stop = True

    def train_step(self, rate: float = 1.0, teacher: nn.Module | None = None) -> float:
        """One update at `rate` times the recipe's learning rate; returns the loss. A function of the saved state.

        Raises:
            FloatingPointError: loss or gradient is NaN or Inf; nothing was changed but the random state.
        """
        for optimiser, factor in zip(self.optimisers, (1.0, 0.5), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = self.recipe.learning_rate * factor * rate
            optimiser.zero_grad(set_to_none=True)
        loss = self.distillation_loss(teacher) if teacher is not None else self.flow_loss()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        value = float(loss.detach())
        if not np.isfinite(value) or not torch.isfinite(norm):
            raise FloatingPointError(f"step {self.step}: the loss is {value}, the gradient's norm {float(norm)}")
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for average, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.lerp_(parameter, 1 - keep)
        return value
