"""A detector that says what was written down for it, and a run of two images in which it does."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import torch
from driven import Driven, plan_of
from runner import make_bank

from uvr_core.adapter import Layout
from uvr_core.intercept.calls import AttentionCall
from uvr_plugins.policies import Observe

GRID, PATCHES, WIDTH = (3, 4), 12, 32
LAYOUT = Layout(GRID, ((2, 3),))


@attrs.define
class Script:
    """A detector that gives the scores and origins written down for each step."""

    steps: list[np.ndarray]
    origins: list[list[float] | None]
    seen: list[torch.Tensor] = attrs.field(factory=list)
    asked: int = 0
    name: str = "script"

    def scores(self, features: torch.Tensor, sigma: float, bank: Any, probe: str) -> torch.Tensor:
        self.seen.append(features)
        return torch.from_numpy(self.steps[len(self.seen) - 1]).float()

    def origin(self, features: torch.Tensor, core: torch.Tensor, sigma: float, bank: Any, probe: str) -> Any:
        self.asked += 1
        told = self.origins[len(self.seen) - 1]
        return None if told is None else torch.tensor(told)


def play(detector: Any, layout: Layout = LAYOUT, steps: int = 2, **options: Any) -> tuple[Driven, list[torch.Tensor]]:
    """Two images, one call per step through a run that observes; the outputs of the calls."""
    driven = Driven([plan_of(make_bank(), detector, Observe(), 5.0, **options)])
    generator, outputs = torch.Generator().manual_seed(0), []
    for step in range(steps):
        q, k, v = (torch.randn(2, 2, 3 + layout.image, 16, generator=generator) for _ in range(3))
        outputs.append(torch.nn.functional.scaled_dot_product_attention(q, k, v))
        driven.forward(AttentionCall("a", q, k, v, outputs[-1], None, None), 1 - step / steps, layout)
    return driven, outputs


def scored(*patches: dict[int, float]) -> np.ndarray:
    """(2, N) scores: 0 but for the patches named."""
    scores = np.zeros((2, PATCHES), np.float32)
    for row, named in zip(scores, patches, strict=True):
        for patch, value in named.items():
            row[patch] = value
    return scores
