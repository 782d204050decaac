"""A pytest plug-in: what every call of a pipeline or transformer gave, with a regulator attached around it, or none.

    UVR_RECORD=FILE UVR_ATTACH=nothing|observe|idle python -m pytest -p recorder ...

`nothing` is stock. `observe` attaches without a concept, `idle` with one of which nothing is ever located; both must
leave every result as it is, bit for bit. FILE gets a line of JSON per test.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from stand_ins import pictures_alone, small_pictures

import uvr_core
from uvr_core import plugins
from uvr_core.engine.lookup import find_adapter, fingerprint

RECORD, MODE = os.environ["UVR_RECORD"], os.environ.get("UVR_ATTACH", "nothing")


class Nothing:
    """A detector that never locates anything."""

    name, threshold = "nothing", 0.0

    def scores(self, features: torch.Tensor, sigma: float, bank: Any, probe: str) -> torch.Tensor:
        return torch.full(features.shape[:2], -1.0, device=features.device)


def attached(model: Any, transformer: torch.nn.Module) -> Any:
    """A regulator on a pipeline or its transformer, as MODE says."""
    if MODE == "observe":
        return uvr_core.attach(model)
    taps = find_adapter(transformer).taps(transformer)
    calibration = uvr_core.Calibration("nothing", next(iter(taps)), (1.0, 0.0), 0.0)
    bank = uvr_core.ConceptBank("nothing", fingerprint(transformer, taps), {}, calibration)
    return uvr_core.attach(model, concepts=bank, detector=Nothing(), policy="block")


@contextmanager
def regulated(model: Any) -> Iterator[None]:
    """Whatever is called in here is regulated."""
    bare = isinstance(model, torch.nn.Module)
    with attached(model, model if bare else model.transformer) as reg, reg.generation() if bare else nullcontext():
        yield
    if reg.report is None or reg.report.fired == 0:
        raise AssertionError(f"{type(model).__name__}: a call came back, and no tap had fired")


class Calls(threading.local):
    """The calls of the test that runs: [class, "gave" or "raised", digest or error] each, and "cache" if one is on."""

    inside = False

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def call(self, stock: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.inside or not known(model):
            return stock(model, *args, **kwargs)
        self.inside = True
        try:
            with nullcontext() if MODE == "nothing" else regulated(model):
                result = stock(model, *args, **kwargs) if isinstance(model, torch.nn.Module) else model(*args, **kwargs)
            self.calls.append([type(model).__name__, "gave", digest(result), *cached(model)])
            return result
        except Exception as error:
            kind = "refused" if isinstance(error, uvr_core.UVRError) else "raised"
            self.calls.append([type(model).__name__, kind, f"{type(error).__name__}: {error}"])
            raise
        finally:
            self.inside = False


calls = Calls()


def known(model: Any) -> bool:
    """Whether an adapter knows the transformer."""
    transformer = model if isinstance(model, torch.nn.Module) else getattr(model, "transformer", None)
    return any(adapter.recognises(transformer) for adapter in plugins.registry().resolve_all("adapter").values())


def cached(model: Any) -> list[str]:
    """Says that a step cache is on."""
    transformer = model if isinstance(model, torch.nn.Module) else model.transformer
    return ["cache"] if getattr(transformer, "is_cache_enabled", False) else []


def digest(result: Any) -> str:
    """Of everything that a call gave, to the last bit."""
    sha = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            sha.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, (np.ndarray, Image.Image)):
            sha.update(np.asarray(part).tobytes())
        elif isinstance(part, Mapping):
            for name, value in part.items():
                sha.update(str(name).encode())
                add(value)
        elif isinstance(part, (tuple, list)):
            for value in part:
                add(value)
        else:
            sha.update(repr(part).encode())

    add(result)
    return sha.hexdigest()[:16]


def wrap(kind: type) -> None:
    """Put `calls` around what an instance of the class does when it is called."""
    stock: Any = kind.__call__

    @functools.wraps(stock)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return calls.call(stock, self, args, kwargs)

    kind.__call__ = __call__


def subclasses(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def pytest_collection_finish() -> None:
    """Every pipeline class that the tests have imported, and every transformer that an adapter names."""
    pictures_alone()
    small_pictures()
    for kind in {*subclasses(DiffusionPipeline)}:
        if "__call__" in vars(kind):
            wrap(kind)
    for model in {adapter.model for adapter in plugins.registry().resolve_all("adapter").values()}:
        wrap(getattr(diffusers, model))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    calls.calls = []
    seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    seed()


def seed() -> None:
    """Tests that seed nothing draw the same in each session."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.when == "call" or (report.when == "setup" and not report.passed):
        error = "" if call.excinfo is None else f"{call.excinfo.typename}: {call.excinfo.value}"[:300]
        refused = call.excinfo is not None and isinstance(call.excinfo.value, uvr_core.UVRError)
        line = {"test": item.nodeid, "outcome": report.outcome, "error": error, "calls": calls.calls}
        line["refused"] = refused  # also where a fixture's call was, of which the tests after the first hear again
        with open(RECORD, "a") as record:
            record.write(json.dumps(line) + "\n")
