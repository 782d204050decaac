"""Every built-in detector and policy keeps the contract."""

from __future__ import annotations

import functools

import attrs
import pytest
import torch
from conformance import built_in, get
from tiny import example

from uvr_core.protocols import CallInfo, Direction, FlowEdit, Located
from uvr_core.testing import Status, check_detector, check_policy
from uvr_core.testing.detector import random_bank

pytestmark = pytest.mark.usefixtures("one_thread")

GIVEN = "its masks are given, for a fixed batch"
EXPECTED = {
    "oracle": {
        "shape-and-dtype": GIVEN, "samples-independent": GIVEN, "patches-move-along": GIVEN, "deterministic": GIVEN,
        "finite": "±inf is its score",
    }
}  # fmt: skip


@pytest.mark.parametrize("name", built_in("detector"))
def test_built_in_detectors(name: str) -> None:
    detector = get("detector", name)
    if name == "oracle":
        detector = attrs.evolve(detector, masks=torch.tensor([[True, False, True] * 2] * 3))
    bank = random_bank()
    bank.tensors[f"token/{bank.probes[0]}"] = torch.randn(3, bank.width, generator=torch.Generator().manual_seed(2))
    check_detector(detector, bank=bank, expected_failures=EXPECTED.get(name))


@pytest.mark.parametrize("name", built_in("policy"))
def test_built_in_policies(name: str) -> None:
    check_policy(get("policy", name))


def test_project_with_a_direction() -> None:
    """The bank of the kit's model has no direction; here the call gives one, and rows of both signs."""
    project = get("policy", "project")
    generator = torch.Generator().manual_seed(6)
    vector, offset = torch.randn(32, generator=generator), torch.randn(1, 15, generator=generator)
    projections = []

    class Directed:
        name, masks = "directed", project.masks

        def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
            patches = located.core.shape[1]
            direction = call.direction() or Direction(vector, offset[:, :patches].expand(len(located.core), -1))
            edit = project.edit(located, attrs.evolve(call, direction=lambda: direction))
            projections.append(edit.projection)
            return edit

    report = check_policy(Directed())
    assert {o.status for o in report.outcomes} == {Status.PASSED}
    assert all(projection is not None for projection in projections)


@pytest.mark.parametrize("name", ["sd3", "qwen-image"])
def test_a_policy_on_a_model_of_ones_own(name: str) -> None:
    check_policy(
        get("policy", "selective"), make_example=functools.partial(example, name), adapter=get("adapter", name)
    )
