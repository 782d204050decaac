"""A tiny pipeline and a bank that was collected on it, for all tests of fitting."""

from __future__ import annotations

from typing import Any

import pytest
from fitting import BENIGN, OPTIONS, UNSAFE, drawn_masks
from tiny import tiny_flux

import uvr_core
from uvr_core import collect


@pytest.fixture(scope="session")
def pipe() -> Any:
    return tiny_flux()


@pytest.fixture(scope="session")
def bank(pipe: Any) -> uvr_core.ConceptBank:
    return collect(
        pipe, "weapon", prompts=UNSAFE, masks=drawn_masks(4), benign_prompts=BENIGN[:3], batch_size=3, generate=OPTIONS
    )
