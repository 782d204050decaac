"""Tokens taken for others are caught, whether the adapter or the engine mistakes them."""

from __future__ import annotations

import functools

import attrs
import pytest
from conformance import FLUX, SD3, failed, shift_output
from tiny import example

from uvr_core.testing import Example, check_adapter

pytestmark = pytest.mark.usefixtures("one_thread")

UPSIDE_DOWN = attrs.evolve(SD3, image_at="end")
BROKEN = {
    "image at the wrong end": ("sd3", UPSIDE_DOWN, {"last-block", "earlier-blocks", "edit-lands"}),
    "image at the wrong end, one stream": ("flux", attrs.evolve(FLUX, image_at="start"), {"last-block", "edit-lands"}),
    "references taken for the output": ("flux", attrs.evolve(FLUX, output_first=False), {"last-block", "edit-lands"}),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_adapter_is_caught(fault: str) -> None:
    name, adapter, wanted = BROKEN[fault]
    failures = failed(check_adapter, adapter, functools.partial(example, name))
    assert wanted <= set(failures), failures


def test_the_message_says_where_the_picture_lies() -> None:
    message = failed(check_adapter, UPSIDE_DOWN, functools.partial(example, "sd3"))["last-block"]
    assert "transformer_blocks.1.attn" in message
    assert "row 0: expected [], got [0]" in message
    assert "patch 0 lies at row 0" in message


@pytest.mark.parametrize("check", ["edit-lands"])
def test_a_broken_engine_is_caught(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shift_output(monkeypatch)
    assert check in failed(check_adapter, FLUX, functools.partial(example, "flux"))


def test_a_block_without_effect_is_named() -> None:
    def dead() -> Example:
        sample = example("sd3")
        for parameter in sample.model.get_submodule("transformer_blocks.1.attn.to_out.0").parameters():
            parameter.zero_()
        return sample

    assert "are its weights zero?" in failed(check_adapter, SD3, dead)["last-block"]
