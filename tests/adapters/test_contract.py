"""The adapters of the zoo's pipelines keep the contract on the real pipeline; test_families.py has all adapters."""

from __future__ import annotations

import functools

import pytest
from conformance import get
from tiny import example

from uvr_core.testing import Status, check_adapter

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = {
    "flux": "flux",
    "flux-kontext": "flux",
    "sd3": "sd3",
    "qwen-image": "qwen-image",
    "qwen-image-edit": "qwen-image",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_built_in_adapters(name: str) -> None:
    report = check_adapter(get("adapter", EXAMPLES[name]), functools.partial(example, name))
    skipped = {o.name for o in report.outcomes if o.status is not Status.PASSED}
    assert skipped - {"ragged", "guidance-parts"} == {"published-size"}
