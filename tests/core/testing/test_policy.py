"""check_policy: what breaks the contract is caught by the check that should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from conformance import failed, nudge_output, shift_output

from uvr_core.errors import UnsafeContent
from uvr_core.protocols import CallInfo, ColumnScale, FlowEdit, Located, row_classes
from uvr_core.testing import Status, check_policy

pytestmark = pytest.mark.usefixtures("one_thread")


class Cut:
    """A sound policy that the broken ones change."""

    name = "cut"
    ring = 1

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        return FlowEdit(row_classes(located), ((1.0,) * 4, (0.0, 1.0, 1.0, 0.0), (0.5, 1.0, 1.0, 0.5)))


def broken_policy(change: Callable[[FlowEdit, Located, CallInfo], Any]) -> object:
    class Broken(Cut):
        def edit(self, located: Located, call: CallInfo) -> Any:
            return change(Cut.edit(self, located, call), located, call)  # type: ignore[arg-type]

    return Broken()


def table(edit: FlowEdit, factor: float) -> FlowEdit:
    return attrs.evolve(edit, table=((1.0,) * 4, (factor, 1.0, 1.0, 0.0), (0.5, 1.0, 1.0, 0.5)))


def mask_in_place(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
    located.ring.logical_or_(located.core)
    return edit


def contrast_in_place(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
    return attrs.evolve(edit, text_factor=call.text_contrast().nan_to_num_(0.0, 9.0).div_(9.0).clamp_(0, 1))


def dither(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
    return attrs.evolve(edit, text_factor=torch.rand(len(located.core), call.text))


def by_area(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
    return table(edit, 1 - float(located.core.float().mean()))


def everything(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
    return attrs.evolve(edit, row_class=torch.ones_like(edit.row_class))


POLICIES = {
    "negative factor": (lambda e, *_: table(e, -0.5), {"factors"}),
    "NaN factor": (lambda e, *_: table(e, float("nan")), {"factors"}),
    "short table": (lambda e, *_: attrs.evolve(e, table=((1.0,) * 3,) * 3), {"shapes"}),
    "short columns": (lambda e, *_: attrs.evolve(e, columns=ColumnScale(((1.0,) * 4,) * 3)), {"shapes"}),
    "share above 1": (lambda e, *_: attrs.evolve(e, alpha=(0.0, 1.5, 0.0)), {"factors"}),
    "noise on stock rows alone": (lambda e, *_: attrs.evolve(e, alpha=(0.0, 0.5)), {"shapes"}),
    "a factor of text tokens for references": (
        lambda e, located, call: attrs.evolve(e, reference_factor=torch.ones(len(located.core), call.text)), {"shapes"},
    ),
    "float classes": (lambda e, *_: attrs.evolve(e, row_class=e.row_class.float()), {"shapes"}),
    "rows that were not located": (everything, {"located-rows-only", "stock-samples"}),
    "a factor by the batch's area": (by_area, {"samples-independent"}),
    "masks changed in place": (mask_in_place, {"inputs-unchanged"}),
    "contrast changed in place": (contrast_in_place, {"inputs-unchanged"}),
    "random factors": (dither, {"deterministic", "no-global-random"}),
    "a tensor": (lambda e, *_: e.row_class, {"protocol"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", POLICIES)
def test_a_broken_policy_is_caught(fault: str) -> None:
    change, wanted = POLICIES[fault]
    found = failed(check_policy, broken_policy(change))
    assert wanted <= set(found), found


def test_a_sound_policy_passes() -> None:
    report = check_policy(Cut())
    assert {o.status for o in report.outcomes} == {Status.PASSED}


def test_a_policy_with_bad_mask_options_is_caught() -> None:
    policy = Cut()
    policy.ring = -1
    assert "ring: expected a number of patches >= 0, got -1" in failed(check_policy, policy)["mask-options"]


def test_a_policy_may_refuse() -> None:
    class Refuse(Cut):
        def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
            raise UnsafeContent("located", concept="x")

    assert check_policy(Refuse())["stock-patches"].status is Status.SKIPPED


def test_edits_that_leave_their_rows_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    shift_output(monkeypatch)
    assert "stock-patches" in failed(check_policy, Cut())


def test_samples_that_are_not_left_stock_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    nudge_output(monkeypatch)

    class Nothing(Cut):
        def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
            return None

    assert "stock-samples" in failed(check_policy, Nothing())
