"""The released sizes, without memory, through the kit."""

from __future__ import annotations

import functools

import pytest
from conformance import get
from published import PUBLISHED, Published
from tiny import example

from uvr_core.testing import Example, Status, check_adapter

pytestmark = pytest.mark.usefixtures("one_thread")


def at_published_size(model: Published) -> Example:
    return Example(model.build(), lambda height, width, batch, sigma: model.inputs())


@pytest.mark.parametrize("source", ["FLUX.1-dev", "stable-diffusion-3.5-medium", "Qwen-Image"])
def test_published_size(source: str) -> None:
    model = next(m for m in PUBLISHED if m.source.endswith(source))
    report = check_adapter(
        get("adapter", model.adapter), functools.partial(example, model.adapter),
        published=functools.partial(at_published_size, model),
    )  # fmt: skip
    assert report["published-size"].status is Status.PASSED


def test_weights_off_the_meta_device_are_refused() -> None:
    """A released model is not to be loaded for this check."""
    report = check_adapter(
        get("adapter", "sd3"),
        functools.partial(example, "sd3"),
        published=functools.partial(example, "sd3"),
        expected_failures={"published-size": "its weights are real"},
    )
    assert "tensors off the meta device: expected none" in report["published-size"].message
