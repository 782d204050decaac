"""Train the free-form flux: rectified flow on pools of scenes of several canvases, captions drawn anew at every step.

    python -m uvr_zoo.freeform flux --folder runs/freeform-flux --minutes 60        (the same command goes on)

`checkpoint.pt` holds model, average, optimisers, random state, step and seconds spent, `pools.pt` the encoded scenes;
both are replaced every two minutes and when the run ends, also by SIGINT or SIGTERM. A step is a function of that
state.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import nn

from .. import training
from ..architectures import image_ids
from ..train import optimisers_of
from .pool import Mix, Pool, spoken
from .words import MAX_TOKENS

_SMALL, _FULL = (64, 64), (96, 96)
CANVASES = (_SMALL, _FULL, (64, 96), (96, 64))
LONGEST_STEP = 60.0  # seconds; what is longer was a suspended process


@attrs.frozen
class Plan:
    """How a free-form transformer is trained.

    Attributes:
        minutes: in all, what resumed runs have spent counts.
        fresh: scenes drawn and encoded at every step, of `pool` that each canvas keeps.
        small: share of steps on the small canvas, at the start; it falls to a tenth of that over the middle half.
        short: share of steps with captions of 24 tokens instead of 48.
        decay: share of the time, the last, over which the learning rate falls to a hundredth.
    """

    mix: Mix
    minutes: float
    batch_size: int = 32
    learning_rate: float = 2e-3
    ema: float = 0.998
    shift: float = 1.8
    drop_text: float = 0.1
    drop_pooled: float = 0.5
    fresh: int = 8
    pool: int = 4096
    first: int = 768
    small: float = 0.8
    short: float = 0.7
    decay: float = 0.3
    seed: int = 0

    def chances(self, progress: float) -> torch.Tensor:
        """Chances of CANVASES when a share `progress` of the time is spent."""
        fall = min(max((progress - 0.3) / 0.4, 0.0), 1.0)
        small = self.small * (1 - 0.9 * fall)
        return torch.tensor([small, 0.9 * (1 - small), 0.05 * (1 - small), 0.05 * (1 - small)])


@attrs.frozen(eq=False)
class Draw:
    """One batch of latents and the condition that goes with them."""

    x: torch.Tensor  # (B, N, 16)
    weight: torch.Tensor  # (B, N)
    sigma: torch.Tensor  # (B,)
    noise: torch.Tensor  # (B, N, 16)
    text: torch.Tensor  # (B, T, 128)
    pooled: torch.Tensor  # (B, 64)
    grid: tuple[int, int]


class Trainer:
    """One training run in a folder; see the module's docstring.

    `pipe` is a FluxPipeline with the free-form text encoders and autoencoder; its transformer is what a new run starts
    from.
    """

    def __init__(self, plan: Plan, pipe: Any, folder: Path, device: str = "cpu"):
        self.plan, self.folder, self.device = plan, folder, device
        self.checkpoint = training.checkpoint_of(folder, resume=True)
        torch.manual_seed(plan.seed)
        self.pipe = pipe.to(device)
        self.model = copy.deepcopy(pipe.transformer).float().train().requires_grad_(True)
        self.ema = pipe.transformer.float().requires_grad_(False)
        self.optimisers = optimisers_of(self.model, plan.learning_rate)
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.pools = {canvas: Pool(plan.mix, canvas, plan.pool) for canvas in CANVASES}
        self.step, self.seconds = 0, 0.0
        if self.checkpoint.exists():
            self._load()
        self.empty = {length: self._encode([""], length) for length in (24, MAX_TOKENS)}

    # -- state
    def save(self) -> None:
        """Write both files; a reader sees the old ones or the new ones, never half of them."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "generator": self.generator.get_state(),
        }
        pools = {canvas: pool.state() for canvas, pool in self.pools.items()}
        training.write(pools, self.folder / "pools.pt")
        training.write(state, self.checkpoint)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        self.step, self.seconds = state["step"], state["seconds"]
        for canvas, pool in torch.load(self.folder / "pools.pt", weights_only=True).items():
            self.pools[canvas].load(pool)

    def log(self, **record: Any) -> None:
        training.log(self.folder, {"step": self.step, **record})

    # -- one step
    @torch.no_grad()
    def _encode(self, captions: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        text, pooled, _ = self.pipe.encode_prompt(captions, captions, max_sequence_length=length)
        return text, pooled

    def draw(self, progress: float) -> Draw:
        """The next batch; takes fresh scenes into the pool of its canvas."""
        plan, size, g = self.plan, self.plan.batch_size, self.generator
        canvas = CANVASES[int(torch.multinomial(plan.chances(progress), 1, generator=g))]
        pool = self.pools[canvas]
        pool.take(plan.fresh if len(pool) else max(plan.first if canvas in CANVASES[:2] else size, size), self.pipe.vae)
        index = torch.randint(len(pool), (size,), generator=g)
        length = 24 if float(torch.rand(1, generator=g)) < plan.short else MAX_TOKENS
        seed = self.step * size
        captions = [spoken(pool.scene(int(slot)), seed + i, length * 8 // 10) for i, slot in enumerate(index)]
        text, pooled = self._encode(captions, length)
        sigma = torch.sigmoid(torch.randn(size, generator=g))
        sigma = torch.where(torch.rand(size, generator=g) < 0.25, torch.rand(size, generator=g), sigma)
        x = pool.x[index].float()
        noise = torch.randn(x.shape, generator=g)
        chance = torch.rand(2, size, 1, generator=g).to(self.device)
        no_text, no_pooled = chance[0] < plan.drop_text, chance[1] < plan.drop_pooled
        empty_text, empty_pooled = self.empty[length]
        return Draw(
            x.to(self.device),
            pool.weight[index].float().to(self.device),
            (plan.shift * sigma / (1 + (plan.shift - 1) * sigma)).to(self.device),
            noise.to(self.device),
            torch.where(no_text[..., None], empty_text, text),
            torch.where(no_text | no_pooled, empty_pooled, pooled),
            pool.grid,
        )

    def loss(self, d: Draw) -> torch.Tensor:
        """Rectified flow: x_t = (1-sigma) x + sigma e, target e - x; patches by their weight."""
        level = d.sigma[:, None, None]
        velocity = self.model(
            hidden_states=(1 - level) * d.x + level * d.noise,
            timestep=d.sigma,
            encoder_hidden_states=d.text,
            pooled_projections=d.pooled,
            guidance=torch.ones_like(d.sigma),
            img_ids=image_ids(*d.grid, device=self.device),
            txt_ids=torch.zeros(d.text.shape[1], 3, device=self.device),
            return_dict=False,
        )[0]
        error = (velocity - (d.noise - d.x)).square().mean(-1)
        return (error * d.weight).sum() / d.weight.sum()

    def train_step(self, progress: float) -> float:
        """One update; returns the loss.

        Raises:
            FloatingPointError: loss or gradient is NaN or Inf; no weight was changed.
        """
        warm = min(1.0, (self.step + 1) / 100)
        rate = self.plan.learning_rate * warm * min(1.0, max(1 - progress, 0.01) / self.plan.decay)
        for optimiser, factor in zip(self.optimisers, (1.0, 0.5), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.zero_grad(set_to_none=True)
        loss = self.loss(self.draw(progress))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        value = float(loss.detach())
        if not np.isfinite(value) or not torch.isfinite(norm):
            raise FloatingPointError(f"step {self.step}: the loss is {value}, the gradient's norm {float(norm)}")
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        keep = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for average, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.lerp_(parameter, 1 - keep)
        return value

    # -- the loop
    def run(self, log_every: int = 20) -> None:
        """Train until the plan's minutes are spent or a signal comes; the run is saved either way.

        Time in which the process was suspended is not spent: no step counts for more than LONGEST_STEP seconds.
        """
        total = self.plan.minutes * 60
        saved = last = time.monotonic()
        since, losses = self.seconds, []
        with training.signals() as stopped:
            try:
                while not stopped() and self.seconds < total:
                    losses.append(self.train_step(self.seconds / total))
                    now = time.monotonic()
                    self.seconds += min(now - last, LONGEST_STEP)
                    last = now
                    if self.step % log_every == 0:
                        speed = len(losses) * self.plan.batch_size / (self.seconds - since)
                        mean = round(float(np.mean(losses)), 4)
                        self.log(seconds=round(self.seconds), loss=mean, samples_a_second=round(speed, 1))
                        since, losses = self.seconds, []
                    if now - saved > training.SAVE_EVERY:
                        saved = now
                        self.save()
            finally:
                self.save()

    def export(self, folder: Path) -> None:
        """Write the average's weights, float16, in diffusers' format."""
        copy.deepcopy(self.ema).half().save_pretrained(folder)
