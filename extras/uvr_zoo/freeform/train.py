"""Train a free-form transformer: rectified flow on pools of pictures of several canvases.

    python -m uvr_zoo.freeform train flux --folder runs/freeform-flux --minutes 60      (the same command goes on)

`checkpoint.pt` holds model, average, optimisers, random state, step and seconds spent; it is replaced every two minutes
and when the run ends, also by SIGINT or SIGTERM. The pools are a function of the step and are encoded anew.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from .. import storage, training
from ..architectures import Architecture, Condition, Grid
from .pool import Canvas, Mix, Pool, Supply

_SMALL, _FULL = (64, 64), (96, 96)
CANVASES = (_SMALL, _FULL, (64, 96), (96, 64))
_FRESH = (0.4, 0.4, 0.1, 0.1)  # chances of CANVASES among the fresh pictures of a step
_CHUNK = 32  # pictures encoded at once while pools are filled
LONGEST_STEP = 60.0  # seconds; what is longer was a suspended process


@attrs.frozen
class Plan:
    """How a free-form transformer is trained.

    Attributes:
        minutes: in all, what resumed runs have spent counts.
        fresh: pictures drawn and encoded at every step, of `pool` that each canvas keeps; `first` before the first.
        workers: processes that draw them; 0: this one does.
        small: share of steps on the small canvas, at the start; it falls to a tenth of that over the middle half.
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
    pool: int = 2048
    first: int = 512
    workers: int = 0
    small: float = 0.8
    decay: float = 0.3
    seed: int = 0

    def chances(self, progress: float) -> torch.Tensor:
        """Chances of CANVASES when a share `progress` of the time is spent."""
        fall = min(max((progress - 0.3) / 0.4, 0.0), 1.0)
        small = self.small * (1 - 0.9 * fall)
        return torch.tensor([small, 0.9 * (1 - small), 0.05 * (1 - small), 0.05 * (1 - small)])

    def canvas_of(self, step: int) -> Canvas:
        """The canvas of a step's fresh pictures."""
        return CANVASES[int(np.random.default_rng([13, self.seed, step]).choice(len(CANVASES), p=_FRESH))]

    def _taken(self, step: int) -> dict[Canvas, int]:
        """How many pictures each pool has taken in when a step begins."""
        taken = dict.fromkeys(CANVASES, self.first)
        for earlier in range(step):
            taken[self.canvas_of(earlier)] += self.fresh
        return taken

    def supply(self, step: int) -> Iterator[list[tuple[Canvas, int]]]:
        """Keys of the pictures to draw, from a step on: first what the pools hold then, then each step's."""
        taken = self._taken(step)
        for canvas, count in taken.items():
            numbers = range(max(0, count - self.pool), count)
            for start in range(0, len(numbers), _CHUNK):
                yield [(canvas, number) for number in numbers[start : start + _CHUNK]]
        while True:
            canvas = self.canvas_of(step)
            yield [(canvas, taken[canvas] + i) for i in range(self.fresh)]
            taken[canvas] += self.fresh
            step += 1

    def fill(self, step: int) -> int:
        """How many of `supply`'s lists fill the pools."""
        taken = self._taken(step)
        return sum(-(-min(count, self.pool) // _CHUNK) for count in taken.values())


@attrs.frozen(eq=False)
class Draw:
    """One batch of latents and the conditions that go with them."""

    x: torch.Tensor  # (B, N, 16)
    weight: torch.Tensor  # (B, N)
    sigma: torch.Tensor  # (B,)
    noise: torch.Tensor  # (B, N, 16)
    prompt: Condition
    empty: Condition  # the empty prompt's, of as many samples
    reference: torch.Tensor | None  # (B, N, 16)
    grid: Grid

    def noisy(self, sigma: torch.Tensor) -> torch.Tensor:
        """(B, N, 16): x_t = (1-sigma) x + sigma e at levels (B,)."""
        level = sigma[:, None, None]
        return (1 - level) * self.x + level * self.noise


class Trainer(training.FlowTrainer):
    """One training run in a folder; see the module's docstring.

    `pipe` is a free-form pipeline; its transformer is what a new run starts from.
    """

    def __init__(self, plan: Plan, pipe: Any, family: Architecture, folder: Path, device: str = "cpu"):
        self.plan, self.family, self.folder = plan, family, folder
        checkpoint = training.checkpoint_of(folder, resume=True)
        torch.manual_seed(plan.seed)
        self.pipe = pipe.to(device)
        model = copy.deepcopy(pipe.transformer).float().train().requires_grad_(True)
        average = pipe.transformer.float().requires_grad_(False)
        how: dict[str, Any] = {"lr": plan.learning_rate, "keep": plan.ema, "seed": plan.seed, "device": device}
        super().__init__(model, average, checkpoint, **how)
        self.pools = {canvas: Pool(canvas, plan.pool, device) for canvas in CANVASES}
        self.drawn = Supply(plan.mix).loader(_endless(plan, self.step), plan.workers)
        for _ in range(plan.fill(self.step)):
            self._take()
        self.empty: Condition = {}
        if not family.sees_image:
            with torch.no_grad():
                self.empty = {name: value.float() for name, value in family.encode(self.pipe, [""], None).items()}

    def _take(self) -> None:
        drawn = next(self.drawn)
        self.pools[drawn[0].example.target.canvas].take(drawn, self.pipe, self.family)

    def log(self, **record: Any) -> None:
        training.log(self.folder, {"step": self.step, **record})

    # -- one step
    def draw(self, progress: float, size: int | None = None) -> Draw:
        """The next batch, of so many rows instead of the plan's; takes fresh pictures into their canvas's pool."""
        plan, size, g = self.plan, size or self.plan.batch_size, self.generator
        self._take()
        pool = self.pools[CANVASES[int(torch.multinomial(plan.chances(progress), 1, generator=g))]]
        rows = pool.rows(size, g)
        sigma = torch.sigmoid(torch.randn(size, generator=g))
        sigma = torch.where(torch.rand(size, generator=g) < 0.25, torch.rand(size, generator=g), sigma)
        noise = torch.randn(rows["x"].shape, generator=g)
        prompt = {key.removeprefix("text."): row for key, row in rows.items() if key.startswith("text.")}
        empty = {
            name: rows.get(f"empty.{name}", self.empty.get(name, row)).expand_as(row) for name, row in prompt.items()
        }
        shifted = plan.shift * sigma / (1 + (plan.shift - 1) * sigma)
        x, weight, reference = rows["x"], rows["weight"], rows.get("reference")
        return Draw(x, weight, shifted.to(self.device), noise.to(self.device), prompt, empty, reference, pool.grid)

    def dropped(self, d: Draw) -> Condition:
        """The prompts, and in some samples the empty prompt: the whole of it, or its pooled vector."""
        chance = torch.rand(2, len(d.x), generator=self.generator).to(self.device)
        no_text, no_pooled = chance[0] < self.plan.drop_text, chance[1] < self.plan.drop_pooled
        condition = {}
        for name, value in d.prompt.items():
            which = no_text | no_pooled if name == "pooled" else no_text
            condition[name] = torch.where(which.view(-1, *[1] * (value.ndim - 1)), d.empty[name], value)
        return condition

    def loss(self, d: Draw) -> torch.Tensor:
        """Rectified flow: target e - x; patches by their weight."""
        noisy, guidance = d.noisy(d.sigma), torch.ones_like(d.sigma)
        velocity = self.family.predict(self.model, noisy, d.sigma, self.dropped(d), d.reference, guidance, d.grid)
        error = (velocity - (d.noise - d.x)).square().mean(-1)
        return (error * d.weight).sum() / d.weight.sum()

    def train_step(self, progress: float) -> float:
        """One update; returns the loss.

        Raises:
            FloatingPointError: loss or gradient is NaN or Inf; no weight was changed.
        """
        warm = min(1.0, (self.step + 1) / 100)
        rate = self.plan.learning_rate * warm * min(1.0, max(1 - progress, 0.01) / self.plan.decay)
        return self.update(lambda: self.objective(progress), rate)

    def objective(self, progress: float) -> torch.Tensor:
        """The loss of the next batch."""
        return self.loss(self.draw(progress))

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
        """Write the average's weights as `storage` keeps them."""
        storage.save(self.ema, folder)


class _endless:
    """A plan's supply as a batch sampler: what DataLoader iterates over once."""

    def __init__(self, plan: Plan, step: int):
        self.plan, self.step = plan, step

    def __iter__(self) -> Iterator[list[tuple[Canvas, int]]]:
        return self.plan.supply(self.step)
