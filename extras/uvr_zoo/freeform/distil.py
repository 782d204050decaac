"""Students of a trained free-form pipeline: guidance in one pass, few steps, or both; a whole model or a LoRA.

    flux-dev              guidance distilled into the embedding (Meng et al. 2023), as FLUX.1-dev
    flux-schnell          4 steps without guidance, as FLUX.1-schnell
    qwen-image-lightning  8 steps without guidance, a LoRA over its teacher, as Qwen-Image-Lightning

A few-step student takes in one step of its schedule what its teacher takes in several guided ones (Salimans and Ho
2022, for rectified flow).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import attrs
import torch

from uvr_core.errors import UVRError, did_you_mean

from ..architectures import Architecture
from .pipelines import SHIFT
from .train import Draw, Plan, Trainer


@attrs.frozen
class Course:
    """What a student learns.

    Attributes:
        teacher: the pipeline's name.
        steps: of its schedule; None: any level, one step of its teacher each.
        substeps: the teacher's within one of them.
        scale: guidance of the teacher, drawn between the two for a student whose embedding is told of it.
        rank: of a LoRA; None: the whole model learns.
    """

    teacher: str
    steps: int | None
    scale: tuple[float, float]
    substeps: int = 1
    rank: int | None = None


COURSES = {
    "flux-dev": Course("flux", None, (1.0, 4.0)),
    "flux-schnell": Course("flux", 4, (3.0, 3.0), substeps=5),
    "qwen-image-lightning": Course("qwen-image", 8, (3.0, 3.0), substeps=3, rank=16),
}


def course(name: str) -> Course:
    """Raises UVRError: there is no such student."""
    if name not in COURSES:
        raise UVRError(f"no student {name!r}{did_you_mean(name, COURSES)}")
    return COURSES[name]


def schedule(steps: int, shift: float = SHIFT) -> torch.Tensor:
    """(steps + 1,) noise levels from 1 to 0, as FlowMatchEulerDiscreteScheduler's with that shift."""
    levels = torch.linspace(1, 1 / steps, steps)
    return torch.cat([shift * levels / (1 + (shift - 1) * levels), torch.zeros(1)])


class Student(Trainer):
    """One distillation in a folder. `pipe` holds the teacher, from which the student starts."""

    def __init__(self, lesson: Course, plan: Plan, pipe: Any, family: Architecture, folder: Path, device: str = "cpu"):
        self.course = lesson
        self.teacher = copy.deepcopy(pipe.transformer).float().eval().requires_grad_(False).to(device)
        if lesson.rank is not None:
            pipe.transformer.add_adapter(lora(lesson.rank))
        super().__init__(plan, pipe, family, folder, device)
        if lesson.rank is not None:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_("lora_" in name)

    def guided(self, d: Draw, x: torch.Tensor, sigma: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The teacher's velocity u + w (c - u) at levels (B,) and scales (B,)."""
        predict, one = self.family.predict, torch.ones_like(sigma)
        prompted = predict(self.teacher, x, sigma, d.prompt, d.reference, one, d.grid)
        empty = predict(self.teacher, x, sigma, d.empty, d.reference, one, d.grid)
        return empty + scale[:, None, None] * (prompted - empty)

    @torch.no_grad()
    def lesson(self, d: Draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where the student stands, at which level, told of which scale, and the velocity that it should have."""
        low, high = self.course.scale
        scale = (low + (high - low) * torch.rand(len(d.x), generator=self.generator)).to(self.device)
        if self.course.steps is None:
            x = d.noisy(d.sigma)
            return x, d.sigma, scale, self.guided(d, x, d.sigma, scale)
        levels = schedule(self.course.steps).to(self.device)
        index = torch.randint(self.course.steps, (len(d.x),), generator=self.generator).to(self.device)
        start, stop = levels[index], levels[index + 1]
        x = end = d.noisy(start)
        for part in range(self.course.substeps):
            width = (stop - start) / self.course.substeps
            end = end + width[:, None, None] * self.guided(d, end, start + part * width, scale)
        return x, start, torch.ones_like(scale), (end - x) / (stop - start)[:, None, None]

    def loss(self, d: Draw) -> torch.Tensor:
        """Mean squared distance to the teacher's velocity; patches by their weight."""
        x, sigma, scale, target = self.lesson(d)
        error = (self.family.predict(self.model, x, sigma, d.prompt, d.reference, scale, d.grid) - target).square()
        return (error.mean(-1) * d.weight).sum() / d.weight.sum()

    def export(self, folder: Path) -> None:
        """Write the average: the whole of it as `storage` keeps it, or a LoRA as diffusers loads it."""
        if self.course.rank is None:
            super().export(folder)
            return
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self.ema)
        self.pipe.save_lora_weights(folder, transformer_lora_layers={k: v.half() for k, v in state.items()})


def lora(rank: int) -> Any:
    """Adapters of that rank on the projections of joint attention."""
    from peft import LoraConfig

    names = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"]
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
