"""Unregulated generations with what detectors would get: features at the probes, and the text beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np
import torch

from ..engine import readings
from ..engine.regulator import Regulator
from ..intercept.calls import JointCall
from ..sampling import Progress, Sampling
from ..tokens import Role

MAX_PROBES = 6


@attrs.frozen(eq=False)
class Recorded:
    """One batch of generations.

    Attributes:
        first: place of the first image in the whole set.
        images, grid: see Drawn.
        features: {(path, step): (B, N, C) or (B, N, 2C) float32}, see Detector.scores.
        sigmas: the steps' noise levels.
        text: {(path, step): ((B, T, C), (B, N, T))}, see engine.readings.text_features; empty unless asked for.
    """

    first: int
    images: list[Any]
    grid: tuple[int, int]
    features: dict[tuple[str, int], torch.Tensor]
    sigmas: list[float]
    text: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]]


def recorded(
    reg: Regulator, pipe: Any, sampling: Sampling, probes: Sequence[str], progress: Progress | None, text: bool = False
) -> Iterator[Recorded]:
    """Draw without regulation, and record what detectors get at the probes; `text`: what the text is and feeds, too."""
    features: dict[tuple[str, int], torch.Tensor] = {}
    sigmas: dict[int, float] = {}
    texts: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def read(call: JointCall) -> None:
        key, sigmas[call.forward.step] = (call.tap, call.forward.step), call.forward.sigma
        features[key] = readings.features(call).detach().cpu()
        if text and call.queries.count(Role.TEXT):
            rows, mass = readings.text_features(call)
            texts[key] = rows.detach().cpu(), mass.detach().cpu()

    @contextmanager
    def recording(batch: slice) -> Iterator[Regulator]:
        for records in (features, sigmas, texts):
            records.clear()
        with reg.recording(read, probes):
            yield reg

    for drawn in sampling.draw(pipe, recording, progress):
        assert drawn.grid is not None
        levels = [sigmas[step] for step in sorted(sigmas)]
        yield Recorded(drawn.first, drawn.images, drawn.grid, dict(features), levels, dict(texts))


def default_probes(reg: Regulator, transformer: torch.nn.Module) -> tuple[str, ...]:
    """Up to MAX_PROBES of the adapter's probe paths, spread over the middle of the model."""
    paths = reg.adapter.probe_paths(transformer)
    if len(paths) <= MAX_PROBES:
        return paths
    places = np.linspace(len(paths) * 0.15, len(paths) * 0.75, MAX_PROBES).round().astype(int)
    return tuple(paths[i] for i in places)
