"""Attach, generate and detach over and over: nothing grows, nothing is left. UVR_CYCLES=1000 is the long version."""

from __future__ import annotations

import contextvars
import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import leaks
import pytest
import torch
from rig import Rig

CYCLES = int(os.environ.get("UVR_CYCLES", 60))


@pytest.fixture
def rig(one_thread: None) -> Rig:
    return Rig("flux")


def test_nothing_grows_and_nothing_is_left(rig: Rig) -> None:
    stock = rig.run()
    assert leaks.grown(rig, CYCLES) == ({}, [])
    assert torch.equal(rig.run(), stock)


def test_every_kind_of_leak_is_found(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each is put in in every cycle, and nothing else is done."""
    kept: list[Any] = []
    undo: list[Callable[[], object]] = []
    stop = threading.Event()
    block, everywhere = rig.transformer.transformer_blocks[0], torch.nn.modules.module
    gelu = torch.nn.functional.gelu

    def leaky(rig: Rig, number: int) -> None:
        thread = threading.Thread(target=stop.wait)
        thread.start()
        kept.extend([contextvars.ContextVar("kept"), type("Kept", (type(rig.pipe),), {})])
        kept.append(type("Kept", (type(block.attn.processor),), {}))
        setattr(block, f"kept_{number}", number)
        undo.append(block.register_forward_hook(lambda *args: None).remove)
        undo.append(everywhere.register_module_forward_hook(lambda *args: None).remove)
        undo.append(lambda: block.__dict__.pop(f"kept_{number}", None))
        monkeypatch.setattr(torch.nn.functional, "gelu", lambda *args, **kw: gelu(*args, **kw))

    monkeypatch.setattr(leaks, "cycle", leaky)
    try:
        grew, left = leaks.grown(rig, 12)
    finally:
        stop.set()
        for do in undo:
            do()
    assert set(grew) == set(leaks.counts(rig.pipe)) - {"rss_mib"}
    assert "torch.nn.functional: gelu" in left


def test_a_regulator_is_collected_with_its_sessions(rig: Rig) -> None:
    """A context keeps every variable that was set in it: what a thread's calls leave there must not hold the run."""
    for target in (rig.pipe, rig.transformer):
        before = len(list(contextvars.copy_context()))
        reg = rig.attach(target)
        rig.run()
        report = reg.report
        reg.detach()
        assert reg.report.findings[1].core.tolist() == report.findings[1].core.tolist()
        assert len(list(contextvars.copy_context())) == before
        gone = weakref.ref(reg)
        del reg
        gc.collect()
        assert gone() is None
