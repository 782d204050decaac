"""Robustness against pictures that show the concept, inverted into latents, and what the model makes of these."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from outcomes import ASKED, FIRST_SEED, IMAGE_SEED, Plan, draw, members_of, outcome, pipeline, shipped, unseen
from PIL import Image

import uvr_core
from uvr_evaluation.render import interval
from uvr_evaluation.statistics import rate
from uvr_zoo import judge, scenes
from uvr_zoo.architectures import ARCHITECTURES, pack
from uvr_zoo.experiment import Generated
from uvr_zoo.recipes import RECIPES
from uvr_zoo.tasks import scenes_for
from uvr_zoo.vae import to_tensor

STRENGTHS = (1.0, 0.8, 0.6, 0.3)
STEPS = 20
STARTUP = 0.85  # the paper's start-up window ends here


def schedule(steps: int = STEPS) -> np.ndarray:
    """(steps,) noise levels as the flux pipeline is given them, before its scheduler's shift; 1 first."""
    return np.linspace(1.0, 1 / steps, steps)


def shifted(levels: np.ndarray, shift: float) -> list[float]:
    """The scheduler's noise levels, 0 at the end: shift * s / (1 + (shift - 1) * s)."""
    return [*(shift * levels / (1 + (shift - 1) * levels)).tolist(), 0.0]


def invert(
    velocity: Callable[[torch.Tensor, float], torch.Tensor], x: torch.Tensor, levels: Sequence[float], rounds: int = 8
) -> list[torch.Tensor]:
    """The sampler's Euler steps run backwards from a picture's latents.

    A step from noise level a down to b is x_b = x_a - (a - b) v(x_a, a). Its inverse is sought by `rounds` fixed-point
    iterations of x_a = x_b + (a - b) v(x_a, a) that start at x_b.

    Args:
        velocity: (latents, noise level) -> latents' velocity.
        x: (B, N, C) latents of the picture.
        levels: noise levels from 1 down to 0, both included.

    Returns:
        Latents at every level, in the order of `levels`; the last is x.
    """
    states = [x]
    for high, low in zip(levels[-2::-1], levels[:0:-1], strict=True):
        guess = states[0]
        for _ in range(rounds):
            guess = states[0] + (high - low) * velocity(guess, high)
        states.insert(0, guess)
    return states


@torch.no_grad()
def inverted(
    pipe: Any, pictures: Sequence[np.ndarray], prompts: Sequence[str], rounds: int = 8
) -> list[torch.Tensor]:  # fmt: skip
    """Latents (B, 64, 16) of uint8 pictures at every noise level of the flux schedule, without guidance."""
    family = ARCHITECTURES["flux"]
    condition = family.encode(pipe, list(prompts), None)
    latents = pack(family.latents(pipe, to_tensor(np.stack(pictures))))

    def velocity(x: torch.Tensor, level: float) -> torch.Tensor:
        at = torch.full((len(x),), level)
        return family.predict(pipe.transformer, x, at, condition, None, torch.ones(len(x)))

    return invert(velocity, latents, shifted(schedule(), pipe.scheduler.config.shift), rounds)


def measure(plan: Plan) -> dict[str, Any]:
    """Pictures that show the concept, inverted into latents, and what the model makes of these."""
    pipe, banks, count = pipeline("flux"), shipped("flux"), plan.count
    tasks = [
        task
        for number, concept in enumerate(ASKED)
        for task in scenes_for(
            "flux", count // 2, unsafe=concept, split="heldout", first=FIRST_SEED + 1000 * number,
            styles=unseen("flux"), wordings=0.0, pair=1.0,
        )
    ]  # fmt: skip
    sources = [scenes.render(task)[0] for task in tasks]
    wanted = [members_of(task) for task in tasks]
    unsafe = [task.caption for task in tasks]
    neutral = [
        attrs.evolve(t, items=tuple(i for i in t.items if i.name not in w)).caption
        for t, w in zip(tasks, wanted, strict=True)
    ]
    seeds = range(IMAGE_SEED, IMAGE_SEED + len(tasks))
    figures: dict[str, Any] = {"rows": {}}
    for title, prompts in (("empty prompt", [""] * len(tasks)), ("unsafe prompt", unsafe)):
        states = inverted(pipe, sources, prompts)
        back = _from(pipe, states, 1.0, prompts, seeds, true_cfg_scale=1.0)
        figures.setdefault("round_trip", {})[title] = _apart(back, sources)
        plan.pictures([[Image.fromarray(s) for s in sources], back])
        for strength in STRENGTHS:
            for then, asked in (("neutral", neutral), ("unsafe", unsafe)):
                stock = _from(pipe, states, strength, asked, seeds)
                with uvr_core.attach(pipe, concepts=banks) as reg:
                    images = _from(pipe, states, strength, asked, seeds)
                    report = reg.report
                size = [len(tasks)]
                row = outcome(tasks, wanted, Generated(stock, [None], size), Generated(images, [report], size))
                figures["rows"][f"{title}, {strength:g}, {then} prompt"] = row
                print(f"inverted by {title}, {strength}, then {then}: {interval(row['erased'])}", flush=True)
                plan.pictures([stock, images])
    figures["closed"] = _closed(pipe, states, unsafe, seeds)
    figures["windows"] = {
        f"{name}, {bank.name}": bank.calibration.window[1]
        for name in RECIPES
        for bank in shipped(name)
        if bank.calibration
    }
    return figures


def _from(
    pipe: Any, states: Sequence[torch.Tensor], strength: float, prompts: Sequence[str], seeds: Sequence[int],
    levels: np.ndarray | None = None, **more: Any,
) -> list[Image.Image]:  # fmt: skip
    """Draw the last `strength` share of the schedule from inverted latents, or the given levels from the picture's."""
    start = STEPS - round(STEPS * strength)
    given = schedule()[start:] if levels is None else levels
    latents = states[start] if levels is None else states[-1]
    return draw(pipe, prompts, seeds, latents=latents[: len(prompts)], sigmas=given, **more)


def _apart(images: Sequence[Image.Image], sources: Sequence[np.ndarray]) -> dict[str, Any]:
    """Mean absolute difference in grey levels of 255, its largest over pictures, and how many still show the same."""
    apart = [float(np.abs(np.asarray(i, float) - s).mean()) for i, s in zip(images, sources, strict=True)]
    before, after = judge()([Image.fromarray(s) for s in sources]), judge()(images)
    same = [set(b) <= set(a) for b, a in zip(before, after, strict=True)]
    return {"mean": statistics.mean(apart), "largest": max(apart), "same_objects": rate(sum(same), len(same))}


def _closed(pipe: Any, states: Sequence[torch.Tensor], prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, str]:
    """Whether a run that starts low is withheld: {bank and start: "ran" or the error's first words}."""
    banks = shipped("flux")
    early = [
        attrs.evolve(b, calibration=attrs.evolve(b.calibration, window=(1.0, STARTUP))) for b in banks if b.calibration
    ]
    runs: list[tuple[str, Any, float, np.ndarray | None]] = [
        (f"window down to {STARTUP}, strength {s:g}", early, s, None) for s in STRENGTHS
    ]
    runs += [(f"shipped window, strength {s:g}", banks, s, None) for s in STRENGTHS]
    runs.append(("shipped window, the last step of 40", banks, 0.0, schedule(40)[-1:]))
    found = {}
    for title, given, strength, levels in runs:
        with uvr_core.attach(pipe, concepts=list(given)):
            try:
                _from(pipe, states, strength, prompts[:2], seeds[:2], levels)
                found[title] = "ran"
            except uvr_core.UVRError as error:
                found[title] = "withheld" if "never looked for" in str(error) else f"withheld: {error}"
    return found
