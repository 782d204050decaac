"""The short version of tools/hygiene.py: attach, generate and detach over and over; nothing grows, nothing is left."""

from __future__ import annotations

import contextvars
import gc
import importlib.util
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny import tiny_zoo

import uvr_core

CYCLES = 60


@pytest.fixture(scope="module")
def hygiene() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hygiene", Path(__file__).parents[1] / "tools" / "hygiene.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pipe() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tiny_zoo("flux")
    torch.set_num_threads(threads)


def test_nothing_grows_and_nothing_is_left(hygiene: ModuleType, pipe: Any) -> None:
    found = hygiene.run(pipe, CYCLES, counted=1)
    assert found["grew"] == [], (found["first"], found["last"])
    assert found["left"] == []
    assert found["bitwise_stock"]
    assert hygiene.clean(found)


def test_every_kind_of_leak_is_found(hygiene: ModuleType, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each is put in in every cycle, and nothing else is done."""
    kept: list[Any] = []
    undo: list[Callable[[], object]] = []
    stop = threading.Event()
    block, everywhere, gelu = pipe.transformer.transformer_blocks[0], torch.nn.modules.module, torch.nn.functional.gelu

    def leaky(pipe: Any, bank: object, number: int) -> None:
        thread = threading.Thread(target=stop.wait)
        thread.start()
        kept.extend([contextvars.ContextVar("kept"), type("Kept", (type(pipe),), {})])
        kept.append(type("Kept", (type(block.attn.processor),), {}))
        setattr(block, f"kept_{number}", number)
        undo.append(block.register_forward_hook(lambda *args: None).remove)
        undo.append(everywhere.register_module_forward_hook(lambda *args: None).remove)
        undo.append(lambda: block.__dict__.pop(f"kept_{number}", None))
        monkeypatch.setattr(torch.nn.functional, "gelu", lambda *args, **kw: gelu(*args, **kw))

    monkeypatch.setattr(hygiene, "cycle", leaky)
    try:
        found = hygiene.run(pipe, 12, counted=1)
    finally:
        stop.set()
        for do in undo:
            do()
    assert set(found["grew"]) == set(found["first"]) - {"rss_mib"}
    assert "torch.nn.functional: gelu" in found["left"]
    assert not hygiene.clean(found)


def test_a_regulator_is_collected_with_its_sessions(pipe: Any, hygiene: ModuleType) -> None:
    """A context keeps every variable that was set in it: what a thread's calls leave there must not hold the run."""
    bank = hygiene.bank_for(pipe.transformer)
    for target in (pipe, pipe.transformer):
        before = len(list(contextvars.copy_context()))
        reg = uvr_core.attach(target, concepts=bank, detector=hygiene.Everywhere(), policy="block")
        hygiene.draw(pipe)
        report = reg.report
        reg.detach()
        assert reg.report.findings[1].core.tolist() == report.findings[1].core.tolist()
        assert len(list(contextvars.copy_context())) == before
        gone = weakref.ref(reg)
        del reg
        gc.collect()
        assert gone() is None
