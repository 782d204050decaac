"""A detector is known by its method."""

from __future__ import annotations

from typing import Any

import torch

from uvr_core.protocols import Detector, TellsOrigin


class Scores:
    def scores(self, features: torch.Tensor, sigma: float, bank: Any, probe: str) -> torch.Tensor:
        return features.mean(-1)


class Tells(Scores):
    def origin(self, features: torch.Tensor, core: torch.Tensor, sigma: float, bank: Any, probe: str) -> None:
        return None


def test_duck_types_are_told_apart() -> None:
    assert isinstance(Scores(), Detector)
    assert not isinstance(Scores(), TellsOrigin)
    assert isinstance(Tells(), TellsOrigin)
    assert not isinstance(object(), Detector)
