"""Students: what they are to learn is their teacher's, and what they are stored as is loaded by diffusers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from uvr_core.errors import UVRError
from uvr_zoo.freeform import distil, train
from uvr_zoo.freeform.pipelines import SHIFT, family, pipeline
from uvr_zoo.freeform.pool import Mix
from uvr_zoo.pipelines import DATA

PLAN = train.Plan(Mix(("cat", "knife"), ("glossy",)), minutes=1, batch_size=2, fresh=1, pool=4, first=2)
GUIDED = distil.Course("flux", None, (1.0, 1.0))


def student(course: distil.Course, folder: Path) -> distil.Student:
    return distil.Student(course, PLAN, pipeline("flux", DATA / "freeform" / "text"), family("flux"), folder)


def test_schedules_are_the_schedulers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT, use_dynamic_shifting=False)
    for steps in (1, 4, 8):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
        assert torch.allclose(distil.schedule(steps), scheduler.sigmas, atol=1e-6)


@pytest.mark.parametrize("course", [GUIDED, attrs.evolve(GUIDED, steps=4), attrs.evolve(GUIDED, steps=4, rank=2)])
def test_at_scale_one_a_student_has_nothing_to_learn_yet(course: distil.Course, tmp_path: Path) -> None:
    one = student(course, tmp_path)
    assert float(one.loss(one.draw(0.5)).detach()) < 1e-9


def test_a_few_step_student_is_to_go_where_its_teacher_goes(tmp_path: Path) -> None:
    one = student(distil.Course("flux", 2, (3.0, 3.0), substeps=3), tmp_path)
    d = one.draw(0.5)
    x, sigma, scale, target = one.lesson(d)
    assert set(sigma.tolist()) <= set(distil.schedule(2)[:-1].tolist())
    assert scale.tolist() == [1.0, 1.0]
    levels = distil.schedule(2)
    for row in range(2):
        index = levels.tolist().index(float(sigma[row]))
        fine = torch.linspace(float(levels[index]), float(levels[index + 1]), 4)
        here = x
        with torch.no_grad():
            for high, low in itertools.pairwise(fine):
                here = here + (low - high) * one.guided(d, here, high.expand(2), torch.full((2,), 3.0))
        reached = x[row] + (levels[index + 1] - levels[index]) * target[row]
        assert torch.allclose(reached, here[row], atol=1e-4)


def test_a_lora_alone_learns_and_diffusers_loads_it(tmp_path: Path) -> None:
    one = student(distil.Course("flux", 4, (3.0, 3.0), rank=2), tmp_path / "run")
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    for _ in range(2):
        one.train_step(0.1)
    moved = {name for name, value in one.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    one.ema.load_state_dict(one.model.state_dict())
    one.export(tmp_path / "out")
    pipe: Any = pipeline("flux", DATA / "freeform" / "text")
    pipe.load_lora_weights(tmp_path / "out")
    d = one.draw(0.5)
    with torch.no_grad():
        ours, theirs = (
            one.family.predict(model, d.x, d.sigma, d.prompt, None, torch.ones(2), d.grid)
            for model in (one.model, pipe.transformer)
        )
    assert torch.allclose(ours, theirs, atol=2e-3)


def test_names_are_told() -> None:
    assert distil.course("flux-dev").teacher == "flux"
    with pytest.raises(UVRError, match="did you mean 'flux-schnell'"):
        distil.course("flux-schnel")
