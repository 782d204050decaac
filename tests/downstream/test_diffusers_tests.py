"""downstream/diffusers_tests.py on a checkout of a few tests whose outcome is known: it attaches, and counts right."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "downstream" / "diffusers_tests.py"

CHECKOUT = """
import pytest
import torch
from tiny import tiny_flux
from transformers import AutoConfig, AutoTokenizer, CLIPTokenizer, Qwen2Tokenizer, Qwen2VLProcessor

HUB = "hf-internal-testing/tiny-random-"
PIPE = tiny_flux()


def seated():
    return hasattr(type(PIPE.transformer.transformer_blocks[0].attn.processor), "_uvr_taps")


def draw(**options):
    noise = torch.Generator().manual_seed(0)
    return PIPE("a cat", num_inference_steps=2, height=64, width=64, generator=noise, output_type="pt", **options)


def forward(time):
    return PIPE.transformer(
        hidden_states=torch.randn(2, 4, 16), encoder_hidden_states=torch.randn(2, 5, 32),
        pooled_projections=torch.randn(2, 32), timestep=time, guidance=torch.ones(2),
        img_ids=torch.tensor([[0.0, y, x] for y in (0, 1) for x in (0, 1)]), txt_ids=torch.zeros(5, 3),
    )


def test_bitwise():
    draw()
    forward(torch.ones(2))


def test_refused_by_name():
    draw()
    forward(torch.tensor([0.3, 0.9]))


def test_fails_as_stock_fails():
    draw(no_such_option=1)


def test_expects_an_error():
    with pytest.raises(TypeError):
        draw(no_such_option=1)


def test_another_result():
    handle = PIPE.transformer.register_forward_hook(lambda m, args, out: (out[0] + seated(),))
    try:
        draw()
    finally:
        handle.remove()


def test_another_error():
    def notice(module, args):
        assert not seated()

    handle = PIPE.transformer.register_forward_pre_hook(notice)
    try:
        draw()
    finally:
        handle.remove()


def test_calls_nothing():
    assert CLIPTokenizer.from_pretrained(HUB + "clip")("a cat", padding="max_length", max_length=9).input_ids[0] == 0
    assert AutoConfig.from_pretrained(HUB + "t5").d_model == 32
    assert AutoTokenizer.from_pretrained(HUB + "t5")("a cat").input_ids[-1] == 1
    qwen = HUB + "Qwen2VLForConditionalGeneration"
    assert Qwen2Tokenizer.from_pretrained(qwen)("<|image_pad|>").input_ids == [151655]
    assert Qwen2VLProcessor.from_pretrained(qwen).image_token == "<|image_pad|>"


@pytest.mark.skip
def test_skipped():
    pass
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("diffusers_tests", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(0)  # three sessions of pytest, which a busy machine may take its time for
def test_every_kind_of_outcome_is_told(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(CHECKOUT)
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".", "adapters", "plugins", "extras", "tests"))
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, "tests", "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 1, done.stderr
    _, observed, idle = (
        done.stdout.partition("records")[0].replace("idle, nothing located", "observed").split("observed")
    )
    for part in (observed, idle):
        for row in (
            "bitwise stock                  2 tests      3 calls",
            "refused by name                1 tests      1 calls",
            "fails as stock fails           1 tests      2 calls",
            "anything else                  2 tests      2 calls",
            "calls no regulated model       1 tests",
            "skipped by diffusers           1 tests",
            "refused    1 calls: UVRError: the samples of one forward have noise levels from N to N",
            "test_another_result: passed -> passed",
            "test_another_error: passed -> failed AssertionError",
        ):
            assert row in part, part


def test_what_is_counted_as_what(script: ModuleType) -> None:
    gave, other, raised, refused = (["Pipe", kind, text] for kind, text in (
        ("gave", "1"), ("gave", "2"), ("raised", "ValueError: x"), ("refused", "UVRError: no"),
    ))  # fmt: skip

    def record(outcome: str, *calls: Any) -> dict[str, Any]:
        return {"outcome": outcome, "error": "", "refused": False, "calls": list(calls)}

    passed, failed = record("passed", gave), record("failed", raised)
    assert script.of_test(passed, passed) == script.BITWISE
    assert script.of_test(passed, record("failed", refused)) == script.REFUSED
    assert script.of_test(record("passed", gave, gave), record("passed", gave, refused)) == script.REFUSED
    assert script.of_test(passed, record("failed") | {"refused": True}) == script.REFUSED
    assert script.of_test(passed, record("failed", other) | {"refused": True}) == script.ELSE
    assert script.of_test(failed, failed) == script.AS_STOCK
    cached, held = record("passed", [*gave, "cache"]), record("passed", [*other, "cache"])
    assert script.of_test(cached, cached) == script.BITWISE
    assert script.of_test(cached, held) == script.HELD
    assert script.of_test(cached, record("passed", other)) == script.ELSE
    assert script.of_test(cached, record("failed", [*raised, "cache"])) == script.ELSE
    assert script.of_test(record("passed"), record("passed")) == script.NO_CALL
    for attached in (record("passed", other), record("failed", raised), record("failed", gave), record("passed")):
        assert script.of_test(passed, attached) == script.ELSE
    assert script.of_test(failed, passed) == script.ELSE
    assert script.summary({"a": passed}, {})[1] == 1, "a test that did not run any more is anything else"
