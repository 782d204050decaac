"""Fixtures: a tiny FLUX pipeline of real classes with random weights, and a bank that fits it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from runner import Runner, make_bank

import uvr_core

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several threads: they only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def bank(runner: Runner) -> uvr_core.ConceptBank:
    return make_bank()
