"""The only judge of integrity: a run that it verifies had every joint call of every forward, once."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from uvr_core.adapter import Layout
from uvr_core.errors import TapNotFired, UnsupportedRuntime, UVRError
from uvr_core.intercept.guidance import Part
from uvr_core.intercept.ledger import Forward, Run

TAPS = ("blocks.0.attn", "blocks.1.attn")
LAYOUT = Layout((2, 2))


def begin(run: Run, sigma: float, layout: Layout = LAYOUT, name: str = "cond") -> Forward:
    step, number, level = run.next_forward(torch.tensor([sigma]), layout)
    run.open(Forward(step, number, layout, level, 1, (Part(name, slice(0, 1), by_order=True),)))  # type: ignore[arg-type]
    assert run.forward is not None
    return run.forward


def forward(run: Run, sigma: float, fires: tuple[str, ...] = TAPS, name: str = "cond") -> Forward:
    opened = begin(run, sigma, name=name)
    for path in fires:
        run.enter(path)
        assert run.inside(path)
        opened.taps[path] += 1
        run.leave()
    return run.close()


@pytest.fixture
def run() -> Run:
    return Run(TAPS)


def test_a_whole_run_is_verified(run: Run) -> None:
    for sigma in (1.0, 0.5):
        for name in ("cond", "uncond"):
            forward(run, sigma, name=name)
    run.verify()
    assert (run.passes, run.sigmas, run.fired) == ([2, 2], [1.0, 0.5], 8)
    assert not run.interrupted


@pytest.mark.parametrize(
    ("fires", "message"),
    [
        (TAPS[:1], f"tap 2 of 2 ({TAPS[1]}) did not fire at step 1"),
        ((*TAPS, TAPS[0]), f"tap 1 of 2 ({TAPS[0]}) fired 2 times at step 1"),
    ],
)
def test_a_tap_that_did_not_fire_once_is_named_with_its_step(run: Run, fires: tuple[str, ...], message: str) -> None:
    forward(run, 1.0)
    with pytest.raises(TapNotFired, match=re.escape(message)):
        forward(run, 0.5, fires)


def uneven(run: Run) -> None:
    forward(run, 1.0)
    forward(run, 0.5)
    forward(run, 0.5, name="uncond")


def unfollowed(run: Run) -> None:
    forward(run, 1.0)
    forward(run, 0.5, name="uncond")


def broken_off(run: Run) -> None:
    forward(run, 1.0)
    forward(run, 0.5)
    begin(run, 0.5, name="uncond")
    run.abort()


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (lambda run: None, "the scheduler ran 0 steps but 0 carried"),
        (uneven, "step 1 had 2 transformer passes, step 0 had 1"),
        (unfollowed, "no forward of step 1 was named as the one that follows the prompt"),
        (broken_off, "4 attention calls were verified, 3 forwards of 2"),
    ],
)
def test_a_run_that_nobody_can_vouch_for(run: Run, history: Callable[[Run], object], message: str) -> None:
    history(run)
    with pytest.raises(TapNotFired, match=message):
        run.verify()


def scheduled(*events: float | None) -> Run:
    """A run whose scheduler makes a step at every None, with forwards of these noise levels between."""
    run = Run(TAPS, scheduled=True)
    for event in events:
        if event is None:
            run.end_step()
        else:
            forward(run, event)
    return run


@pytest.mark.parametrize("sigmas", [(1.0, 1.0, 0.5), (1.0, 0.5, 0.7)], ids=["equal in bfloat16", "rising"])
def test_a_step_is_the_schedulers_and_no_noise_level(sigmas: tuple[float, ...]) -> None:
    run = scheduled(*(event for sigma in sigmas for event in (sigma, None)))
    run.verify()
    assert run.passes == [1, 1, 1]


@pytest.mark.parametrize(
    ("events", "steps", "carried"),
    [((1.0, None, None), 2, 1), ((1.0, None, 0.5), 1, 2), ((1.0,), 0, 1), ((None,), 1, 0)],
)
def test_steps_without_a_forward_and_forwards_without_a_step(
    events: tuple[float | None, ...], steps: int, carried: int
) -> None:
    with pytest.raises(TapNotFired, match=f"ran {steps} steps but {carried} carried"):
        scheduled(*events).verify()


def test_samples_of_different_noise_levels_are_refused(run: Run) -> None:
    with pytest.raises(UVRError, match=r"from 0\.3 to 0\.9"):
        run.next_forward(torch.tensor([0.3, 0.9]), LAYOUT)


def test_a_forward_inside_another_is_refused(run: Run) -> None:
    begin(run, 1.0)
    with pytest.raises(TapNotFired, match="began inside the first"):
        begin(run, 0.5)


@pytest.mark.parametrize("path", [TAPS[1], None])
def test_a_module_that_was_entered_and_not_left(run: Run, path: str | None) -> None:
    begin(run, 1.0)
    run.enter(TAPS[0])
    with pytest.raises(TapNotFired, match=rf"{TAPS[0]} was entered and not left at step 0"):
        run.close() if path is None else run.enter(path)


def test_outside_of_a_forward_no_module_counts(run: Run) -> None:
    run.enter(TAPS[0])
    assert not run.inside(TAPS[0])


@pytest.mark.parametrize("sigma", [float("nan"), float("inf")])
def test_a_noise_level_that_is_no_number(run: Run, sigma: float) -> None:
    with pytest.raises(UVRError, match="noise level"):
        begin(run, sigma)


def test_a_layout_that_changes_inside_one_generation(run: Run) -> None:
    forward(run, 1.0)
    with pytest.raises(UVRError, match="token layout changed"):
        begin(run, 0.5, Layout((3, 3)))


def aside(run: Run, latents: torch.Tensor | None = None, name: str | None = None) -> None:
    run.set_aside(torch.zeros(1, 3) if latents is None else latents, name)
    assert run.passing
    assert run.close_aside()


def test_a_forward_set_aside_before_the_first_step_is_counted_apart(run: Run) -> None:
    aside(run)
    aside(run)
    run.refuse_drawn_aside(torch.ones(1, 3))
    forward(run, 1.0)
    run.verify()
    assert (run.aside, run.passes, run.fired, run.passing, run.close_aside()) == (2, [1], 2, False, False)


def test_a_forward_that_draws_is_not_set_aside(run: Run) -> None:
    """It is refused inside the steps, under a guidance part's name, and over the latents that the first step draws."""
    with pytest.raises(UnsupportedRuntime, match="a forward named 'cond' draws nothing"):
        aside(run, name="cond")
    aside(run, torch.ones(1, 3))
    with pytest.raises(UnsupportedRuntime, match="over the latents of the first step was set aside"):
        run.refuse_drawn_aside(torch.ones(1, 3))
    forward(run, 1.0)
    with pytest.raises(UnsupportedRuntime, match="a forward in step 0 draws nothing"):
        aside(run)


def test_a_run_of_forwards_set_aside_alone_is_withheld(run: Run) -> None:
    run.scheduled = True
    aside(run)
    run.end_step()
    with pytest.raises(TapNotFired, match="ran 1 steps but 0 carried"):
        run.verify()


def test_no_forward_begins_inside_one_that_is_set_aside(run: Run) -> None:
    run.set_aside(None, None)
    assert run.interrupted
    with pytest.raises(TapNotFired, match="began inside the first"):
        begin(run, 1.0)
    with pytest.raises(TapNotFired, match="began inside the first"):
        run.set_aside(None, None)
