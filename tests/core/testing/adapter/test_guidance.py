"""Regulating the wrong half or pass is caught, with a pipeline and without."""

from __future__ import annotations

import functools

import attrs
import pytest
from conformance import QWEN, SD3, failed
from tiny import example

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
    same = {"single": "two_pass", "two_pass": "single"}.get(declared)
    for other in {"batched:uc", "batched:cu", "two_pass"} - {declared, same}:
        assert set(failed(check_adapter, attrs.evolve(QWEN, guidance=other), bare)) == {"guidance"}


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
