"""Regulating the wrong half or pass is caught, with a pipeline and without."""

from __future__ import annotations

import functools
from typing import Any

import attrs
import pytest
import torch
from conformance import QWEN, SD3, failed
from tiny import example

from uvr_core.intercept import forwards
from uvr_core.intercept.guidance import Part
from uvr_core.testing import Example, check_adapter

pytestmark = pytest.mark.usefixtures("one_thread")

BROKEN = {
    "guidance halves swapped": attrs.evolve(SD3, guidance="batched:cu"),
    "guidance halves not seen": attrs.evolve(SD3, guidance="two_pass"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_adapter_is_caught(fault: str) -> None:
    assert set(failed(check_adapter, BROKEN[fault], functools.partial(example, "sd3"))) == {"guidance"}


@pytest.mark.parametrize("declared", ["batched:uc", "batched:cu", "two_pass", "single"])
def test_guidance_without_a_pipeline(declared: str) -> None:
    """The example says how the family guides; an adapter that says otherwise is caught."""

    def bare() -> Example:
        return attrs.evolve(example("qwen-image"), pipeline=None, generate=None, guidance=declared)

    check_adapter(attrs.evolve(QWEN, guidance=declared), bare)
    if declared == "single":  # one pass over the images asked for is that in every other kind as well
        return
    for other in {"batched:uc", "batched:cu", "two_pass"} - {declared}:
        failures = set(failed(check_adapter, attrs.evolve(QWEN, guidance=other), bare))
        assert failures == ({"guidance", "guidance-parts"} if declared.startswith("batched") else {"guidance"})


def by_flag(guidance: str, name: str | None, number: int, trusted: bool, latents: Any, images: int | None) -> Any:
    """Parts as they were once told: the batch is halved as long as the pipeline's flag is on, and both halves are the
    same."""
    half, odd = divmod(len(latents), 2)
    if not trusted or odd or not torch.equal(latents[:half], latents[half:]):
        return (Part("all"),)
    return (Part("uncond", slice(0, half)), Part("cond", slice(half, 2 * half)))


def test_halving_what_is_not_guided_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Z-Image's cfg_truncation: from some step on, the batch holds the images alone."""
    monkeypatch.setattr(forwards, "parts_of", by_flag)
    bare = functools.partial(attrs.evolve, example("sd3"), pipeline=None, generate=None, guidance="batched:uc")
    failures = failed(check_adapter, SD3, bare)
    assert set(failures) == {"guidance", "guidance-parts"}
    assert "rows regulated of 4 images: expected 4, got 2" in failures["guidance-parts"]


@pytest.mark.parametrize("ignored", ["prompt", "negative prompt"])
def test_an_example_that_follows_no_prompt_proves_nothing(ignored: str) -> None:
    def deaf() -> Example:
        stock = example("qwen-image")
        assert stock.generate is not None
        generate = stock.generate
        if ignored == "prompt":
            return attrs.evolve(stock, generate=lambda prompt, negative: generate("a cat", negative))
        return attrs.evolve(stock, generate=lambda prompt, negative: generate(prompt, "a dog"))

    failures = failed(check_adapter, QWEN, deaf)
    assert set(failures) == {"guidance"}
    assert f"draws under another {ignored}: expected a change, got none" in failures["guidance"]
