"""Distillation: what students are to learn is their teacher's, lessons are kept, a LoRA alone learns."""

from __future__ import annotations

import itertools
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from uvr_zoo.freeform import distil, train
from uvr_zoo.freeform.pipelines import SHIFT, TEXT, family, pipeline
from uvr_zoo.freeform.pool import Mix
from uvr_zoo.freeform.students import COURSES, Course

PLAN = train.Plan(Mix(("cat", "knife"), ("glossy",)), minutes=1, batch_size=4, fresh=1, pool=4, first=2)
GUIDED = Course("flux", None, (1.0, 1.0), rank=2)


def student(course: Course, folder: Path) -> distil.Student:
    return distil.Student(course, PLAN, pipeline("flux", TEXT), family("flux"), folder)


def test_schedules_are_the_schedulers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT, use_dynamic_shifting=False)
    for steps in (1, 4, 8):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
        assert torch.allclose(distil.schedule(steps), scheduler.sigmas, atol=1e-6)


@pytest.mark.parametrize("course", [GUIDED, attrs.evolve(GUIDED, steps=4)])
def test_at_scale_one_a_student_has_nothing_to_learn_yet(course: Course, tmp_path: Path) -> None:
    assert float(student(course, tmp_path).objective(0.5).detach()) < 1e-9


def test_a_few_step_student_is_to_go_where_its_teacher_goes(tmp_path: Path) -> None:
    """From noise on; half of the rows then go on from where the student itself came to stand."""
    one = student(Course("flux", 2, (3.0, 3.0), substeps=3, rank=2), tmp_path)
    d = one.draw(0.5, 8)
    rows = one.lessons(d)
    levels = distil.schedule(2)
    assert rows["sigma"].tolist() == [float(levels[0])] * 8 + [float(levels[1])] * 8
    assert rows["scale"].tolist() == [1.0] * 16
    x, again = rows["x"].split(8)
    assert torch.equal(x, d.noise)
    ends = []
    for start, (high, low) in zip((x, again), itertools.pairwise(levels.tolist()), strict=True):
        here = start
        with torch.no_grad():
            for at, to in itertools.pairwise(torch.linspace(high, low, 4)):
                here = here + (to - at) * one.guided(d, here, at.expand(8), torch.full((8,), 3.0))
        ends.append(here)
    for number, end in enumerate(ends):
        part = slice(8 * number, 8 * number + 8)
        width = float(levels[number + 1] - levels[number])
        assert torch.allclose(rows["x"][part] + width * rows["target"][part], end, atol=1e-3)
    width = float(levels[1] - levels[0])
    with torch.no_grad():
        took = one.family.predict(one.model, x, levels[:1].expand(8), d.prompt, None, torch.ones(8), d.grid)
    as_teacher, as_student = (
        torch.isclose(again, end, atol=1e-3).all(-1).all(-1) for end in (ends[0], x + width * took)
    )
    assert (as_teacher ^ as_student).all()
    assert 0 < int(as_teacher.sum()) < 8


def test_a_student_told_of_the_scale_learns_it(tmp_path: Path) -> None:
    one = student(attrs.evolve(COURSES["flux-dev"], rank=2), tmp_path)
    d = one.draw(0.5)
    rows = one.lessons(d)
    assert rows["scale"].unique().numel() == 4
    assert 1 <= float(rows["scale"].min()) < float(rows["scale"].max()) <= 4
    assert torch.equal(rows["target"], one.guided(d, rows["x"], rows["sigma"], rows["scale"]))


def test_lessons_are_kept_and_learned_from_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = student(Course("flux", 2, (3.0, 3.0), rank=2, repeats=3), tmp_path)
    made, stock = [], one.lessons
    monkeypatch.setattr(one, "lessons", lambda d: (made.append(len(d.x)), stock(d))[1])
    for _ in range(4):
        one.train_step(0.1)
    assert made == [2, 2]  # at steps 0 and 3: two pictures of two steps each
    assert sum(ring.taken for ring in one.kept.values()) == 8


def test_a_lora_alone_learns_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    one = student(attrs.evolve(COURSES["flux-schnell"], rank=2, substeps=1), tmp_path / "run")
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    for _ in range(2):
        one.train_step(0.1)
    moved = {name for name, value in one.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    one.save()
    again = student(one.course, tmp_path / "run")
    assert again.step == 2
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in one.model.state_dict().items())
