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

from .muon import optimisers_of

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


class FlowTrainer:
    """A transformer in training, the average of its weights, and what the next step depends on, in a checkpoint.

    Args:
        model, ema: the transformer and the average.
        checkpoint: gone on from where it exists.
        lr: learning rate. keep: the share of the average that a step keeps, less in the first ones.
    """

    def __init__(
        self, model: nn.Module, ema: nn.Module, checkpoint: Path, *, lr: float, keep: float, seed: int, device: str
    ):
        self.model, self.ema, self.checkpoint, self.device, self._keep = model, ema, checkpoint, device, keep
        self.optimisers = optimisers_of(model, lr)
        self.generator = torch.Generator().manual_seed(seed)
        self.step, self.seconds = 0, 0.0
        if checkpoint.exists():
            self.load(torch.load(checkpoint, map_location=device, weights_only=True))

    def state(self) -> dict[str, Any]:
        """What the checkpoint holds."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "generator": self.generator.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the checkpoint; a reader sees the old one or the new one, never half of it."""
        write(self.state(), self.checkpoint)

    def update(self, loss_of: Callable[[], torch.Tensor], rate: float) -> float:
        """One step at a learning rate; returns the loss.

        Raises:
            FloatingPointError: loss or gradient is NaN or Inf; no weight was changed.
        """
        for optimiser, factor in zip(self.optimisers, (1.0, 0.5), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        value = float(loss.detach())
        if not np.isfinite(value) or not torch.isfinite(norm):
            raise FloatingPointError(f"step {self.step}: the loss is {value}, the gradient's norm {float(norm)}")
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        keep = min(self._keep, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - keep)
        return value


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
