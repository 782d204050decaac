"""What an adapter reads off an example, as the checks see it."""

from __future__ import annotations

import attrs
import pytest
import torch
from conformance import QWEN, SD3
from tiny import example

from uvr_core.errors import TapNotFired
from uvr_core.testing.adapter.subject import BATCHES, Subject
from uvr_core.testing.suite import CheckFailed

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_size_and_batch_is_tried_with_references_and_without() -> None:
    qwen = Subject(QWEN, lambda: example("qwen-image"))
    cases = [(size, batch, references) for _, size, batch, references in qwen._cases()]
    assert len(cases) == len(set(cases)) == 2 * 3 * len(BATCHES)
    assert {references for *_, references in cases} == {(), ((3, 2), (2, 2))}
    assert {references for *_, references in Subject(SD3, lambda: example("sd3"))._cases()} == {()}


@torch.no_grad()
def test_the_joint_calls_hold_every_image_token() -> None:
    sd3 = example("sd3")
    arguments = sd3.arguments((2, 3))
    right = Subject(SD3, lambda: sd3)
    layout = right._read_layout(sd3, arguments)
    calls = right._joint_calls(sd3, arguments, (2, 3), layout)
    assert [call.path for call in calls] == list(SD3.taps(sd3.model))  # the second attention of SD 3.5 is left out
    with pytest.raises(TapNotFired, match="holds the 99 image tokens"):
        right._joint_calls(sd3, arguments, (2, 3), attrs.evolve(layout, grid=(9, 11)))


def test_a_layout_must_be_one() -> None:
    """None would let the forward pass unregulated."""
    sd3 = example("sd3")
    for wrong in (None, (2, 3)):
        with pytest.raises(CheckFailed, match="layout"):
            Subject(attrs.evolve(SD3, layout=lambda a, wrong=wrong: wrong), lambda: sd3)._read_layout(
                sd3, sd3.arguments((2, 3))
            )
