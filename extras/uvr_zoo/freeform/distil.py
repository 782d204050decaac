"""Distillation: a LoRA over a trained free-form pipeline learns what its teacher does in two passes and more steps.

A few-step student takes in one step of its schedule what its teacher takes in several guided ones (Salimans and Ho
2022, for rectified flow), from where its teacher would stand and from where it came to stand itself (Ross et al. 2011).
Lessons cost several times what a step of training does, so they are kept and learned from again. They are not in the
checkpoint: a resumed run makes new ones.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import torch

from ..architectures import Architecture, Grid
from .pipelines import SHIFT
from .pool import Ring
from .students import Course
from .train import Draw, Plan, Trainer

Lessons = dict[str, torch.Tensor]


def schedule(steps: int, shift: float = SHIFT) -> torch.Tensor:
    """(steps + 1,) noise levels from 1 to 0, as FlowMatchEulerDiscreteScheduler's with that shift."""
    levels = torch.linspace(1, 1 / steps, steps)
    return torch.cat([shift * levels / (1 + (shift - 1) * levels), torch.zeros(1)])


class Student(Trainer):
    """One distillation in a folder. `pipe` holds the teacher, from which the student starts."""

    def __init__(self, lesson: Course, plan: Plan, pipe: Any, family: Architecture, folder: Path, device: str = "cpu"):
        from peft import LoraConfig

        self.course = lesson
        self.teacher = copy.deepcopy(pipe.transformer).float().eval().requires_grad_(False).to(device)
        adapter = LoraConfig(r=lesson.rank, lora_alpha=lesson.rank, target_modules=list(lesson.linears))
        pipe.transformer.add_adapter(adapter)
        super().__init__(plan, pipe, family, folder, device)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self.kept: dict[Grid, Ring] = {}
        self.grid: Grid | None = None  # of the newest lessons

    def guided(self, d: Draw, x: torch.Tensor, sigma: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The teacher's velocity u + w (c - u) at levels (B,) and scales (B,)."""
        predict, one = self.family.predict, torch.ones_like(sigma)
        prompted = predict(self.teacher, x, sigma, d.prompt, d.reference, one, d.grid)
        empty = predict(self.teacher, x, sigma, d.empty, d.reference, one, d.grid)
        return empty + scale[:, None, None] * (prompted - empty)

    @torch.no_grad()
    def lessons(self, d: Draw) -> Lessons:
        """Where the student stands, at which level, told of which scale, and the velocity that it should have.

        Columns x, target (K, N, 16), sigma, scale (K,), weight (K, N), text.NAME and reference; K = B, or B for each
        step of a short schedule, one step after the other.
        """
        low, high = self.course.scale
        scale = (low + (high - low) * torch.rand(len(d.x), generator=self.generator)).to(self.device)
        if self.course.steps is None:
            x = d.noisy(d.sigma)
            rows = {"x": x, "sigma": d.sigma, "scale": scale, "weight": d.weight}
            return {**rows, "target": self.guided(d, x, d.sigma, scale), **_conditions(d)}
        x, one, steps = d.noise, torch.ones_like(scale), []
        teachers = (torch.rand(len(x), 1, 1, generator=self.generator) < 0.5).to(self.device)
        for start, stop in itertools.pairwise(schedule(self.course.steps).tolist()):
            target = (self.way(d, x, start, stop, scale) - x) / (stop - start)
            at = start * one
            steps.append({"x": x, "sigma": at, "scale": one, "weight": torch.ones_like(d.weight), "target": target})
            took = self.family.predict(self.model, x, at, d.prompt, d.reference, one, d.grid)
            x = x + (stop - start) * torch.where(teachers, target, took)
        columns = {name: torch.cat([rows[name] for rows in steps]) for name in steps[0]}
        return columns | {
            name: value.repeat(len(steps), *[1] * (value.ndim - 1)) for name, value in _conditions(d).items()
        }

    def way(self, d: Draw, x: torch.Tensor, start: float, stop: float, scale: torch.Tensor) -> torch.Tensor:
        """(B, N, 16): where the teacher comes from x at one level when it goes to another."""
        width, one = (stop - start) / self.course.substeps, torch.ones_like(scale)
        for part in range(self.course.substeps):
            x = x + width * self.guided(d, x, (start + part * width) * one, scale)
        return x

    def objective(self, progress: float) -> torch.Tensor:
        """The loss of a random batch of the lessons that are kept; every `repeats` steps there are new ones."""
        size = self.plan.batch_size
        if self.grid is None or self.step % self.course.repeats == 0:
            d = self.draw(progress, max(1, size // (self.course.steps or 1)))
            self.grid = d.grid
            self.kept.setdefault(d.grid, Ring(self.plan.pool, self.device, torch.float32)).put(self.lessons(d))
        kept = self.kept[self.grid]
        return self.distance(kept.at(kept.some(min(size, len(kept)), self.generator)), self.grid)

    def distance(self, rows: Lessons, grid: Grid) -> torch.Tensor:
        """Mean squared distance to the teacher's velocity; patches by their weight."""
        text = {name.removeprefix("text."): value for name, value in rows.items() if name.startswith("text.")}
        told = rows["sigma"], text, rows.get("reference"), rows["scale"], grid
        error = (self.family.predict(self.model, rows["x"], *told) - rows["target"]).square()
        return (error.mean(-1) * rows["weight"]).sum() / rows["weight"].sum()

    def export(self, folder: Path) -> None:
        """Write the average's LoRA as diffusers loads it, float16."""
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self.ema)
        self.pipe.save_lora_weights(folder, transformer_lora_layers={k: v.half() for k, v in state.items()})


def _conditions(d: Draw) -> Lessons:
    text = {f"text.{name}": value for name, value in d.prompt.items()}
    return text if d.reference is None else {**text, "reference": d.reference}
