"""What the zoo's trainings share: a run's folder, signals, and one loop for the parts that are trained by the clock.

A run lives in a folder. `checkpoint.pt` is replaced atomically every two minutes and when the run ends, also by SIGINT
or SIGTERM, so that it stops and resumes at any moment; `log.jsonl` has one line per hundred steps.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import nn

from uvr_core.errors import UVRError

SAVE_EVERY = 120.0  # seconds
LOG_EVERY = 100  # steps


@attrs.frozen
class Run:
    """Where a part is trained, and for how long in all: what a resumed run has spent already counts."""

    minutes: float
    folder: Path
    resume: bool = False

    def log(self, **record: Any) -> None:
        log(self.folder, record)


def log(folder: Path, record: dict[str, Any]) -> None:
    """One line of JSON to the folder's log and to stdout."""
    line = json.dumps(record)
    with open(folder / "log.jsonl", "a") as file:
        file.write(line + "\n")
    print(line, flush=True)


def write(state: Any, path: Path) -> None:
    """torch.save; a reader sees the old file or the new one, never half of it."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def checkpoint_of(folder: Path, resume: bool) -> Path:
    """The folder's checkpoint, which may not be there yet.

    Raises:
        FileExistsError: it is, and nobody asked to go on from it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.pt"
    if path.exists() and not resume:
        raise FileExistsError(f"{path} exists: pass --resume to go on from it, or name another folder")
    return path


@contextmanager
def signals() -> Iterator[Callable[[], bool]]:
    """Within the block SIGINT and SIGTERM interrupt nothing; the function given says whether one came."""
    came = False

    def note(number: int, frame: Any) -> None:
        nonlocal came
        came = True

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _resumed(path: Path, part: str, module: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, float]:
    """Put a checkpoint's state in place. Returns (step, seconds spent)."""
    state = torch.load(path, weights_only=True)
    if state.get("part") != part:
        raise UVRError(f"{path}: expected a checkpoint of {part}, got {state.get('part')}; name another folder")
    module.load_state_dict(state["module"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])
    return state["step"], state["seconds"]


def _descend(
    where: str, module: nn.Module, optimiser: torch.optim.Optimizer, losses: dict[str, Any]
) -> dict[str, float]:
    """One step of the optimiser, unless the loss or its gradient is not finite. Returns the figures for the log."""
    optimiser.zero_grad()
    losses["loss"].backward()
    norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    figures = {name: round(float(value), 4) for name, value in losses.items() if name != "loss"}
    figures["loss"] = round(losses["loss"].item(), 4)
    if not (np.isfinite(figures["loss"]) and torch.isfinite(norm)):
        raise FloatingPointError(f"{where}: loss {figures['loss']}, gradient norm {norm:.4g}")
    optimiser.step()
    return figures


def fit(
    part: str,
    module: nn.Module,
    loss: Callable[[int], dict[str, Any]],
    run: Run,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.98),
    weight_decay: float = 1e-2,
    warm: int = 100,
) -> int:
    """AdamW for `run.minutes`; the learning rate rises over `warm` steps and falls as a cosine of the time spent.

    `loss(step)` gives {"loss": scalar tensor} and figures for the log. A step is a function of the saved state: module,
    optimiser, step, seconds, torch's random state.

    Returns:
        the number of steps that the run has had.

    Raises:
        KeyboardInterrupt: a signal came; the step under way was finished and saved.
        FileExistsError: see `checkpoint_of`.
        UVRError: the checkpoint is of another part.
        FloatingPointError: the loss or its gradient is NaN or Inf; nothing was changed but the random state.
    """
    path = checkpoint_of(run.folder, run.resume)
    optimiser = torch.optim.AdamW(module.parameters(), lr=lr, betas=betas, weight_decay=weight_decay)
    step, before = _resumed(path, part, module, optimiser) if path.exists() else (0, 0.0)
    total = run.minutes * 60
    start = time.monotonic() - before

    def save() -> None:
        state = {
            "part": part,
            "module": module.state_dict(),
            "optimiser": optimiser.state_dict(),
            "step": step,
            "seconds": time.monotonic() - start,
            "random": torch.get_rng_state(),
        }
        write(state, path)

    saved = before
    with signals() as stopped:
        try:
            while not stopped() and (elapsed := time.monotonic() - start) < total:
                if elapsed - saved > SAVE_EVERY:
                    saved = elapsed
                    save()
                rate = min(1.0, (step + 1) / warm) * 0.5 * (1 + np.cos(np.pi * elapsed / total)) + 0.01
                for group in optimiser.param_groups:
                    group["lr"] = lr * float(rate)
                figures = _descend(f"{part}, step {step}", module, optimiser, loss(step))
                step += 1
                if step % LOG_EVERY == 0:
                    run.log(step=step, seconds=round(elapsed, 1), of=round(total, 1), **figures)
        finally:
            save()
        if stopped():
            raise KeyboardInterrupt
    return step
