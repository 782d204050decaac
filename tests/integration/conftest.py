"""Fixtures: tiny pipelines, built once, and a look at what is left on them after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from pipelines import BUILT, Tiny


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Tiny]:
    """name -> its pipeline, built once; each test leaves it detached."""

    def built(name: str) -> Tiny:
        if name not in BUILT:
            BUILT[name] = Tiny(name)
        return BUILT[name]

    return built


@pytest.fixture
def still_stock(tiny: Callable[[str], Tiny], name: str) -> Iterator[None]:
    """After the test: nothing of a regulator is left on the pipeline. If something is, the next test gets a new one."""
    model = tiny(name)
    modules = model.adapter.taps(model.pipe.transformer)
    processors = [m.processor for m in modules.values()]
    yield
    clean = (
        type(model.pipe) is model.kind
        and "cache_context" not in vars(model.pipe.transformer)
        and [m.processor for m in modules.values()] == processors
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.pipe.transformer.modules())
    )
    if not clean:
        del BUILT[name]
    assert clean, f"{name}: the pipeline was left regulated"
