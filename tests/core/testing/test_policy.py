"""check_policy: what breaks the contract is caught by the check that should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from conformance import failed, nudge_output, shift_output

from uvr_core.errors import UnsafeContent
from uvr_core.protocols import (
    CallInfo,
    ColumnScale,
    ColumnWeights,
    FlowEdit,
    KeyWeights,
    Located,
    MaskOptions,
    NoiseBlend,
    Reweight,
    row_classes,
)
from uvr_core.testing import Status, check_policy

pytestmark = pytest.mark.usefixtures("one_thread")


class Cut:
    """A sound policy that the broken ones change."""

    name = "cut"
    masks = MaskOptions(ring=1)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        core, ring = KeyWeights(text=0.0, reference=0.0), KeyWeights(text=0.5, reference=0.5)
        return FlowEdit(row_classes(located), Reweight(core, ring))


def broken_policy(change: Callable[[FlowEdit, Located, CallInfo], Any]) -> object:
    class Broken(Cut):
        def edit(self, located: Located, call: CallInfo) -> Any:
            return change(Cut.edit(self, located, call), located, call)  # type: ignore[arg-type]

    return Broken()


def reweighted(edit: FlowEdit, **fields: Any) -> FlowEdit:
    return attrs.evolve(edit, reweight=attrs.evolve(edit.reweight, **fields))


def cut(edit: FlowEdit, factor: float) -> FlowEdit:
    return reweighted(edit, core=KeyWeights(text=factor, reference=0.0))


def mask_in_place(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
    located.ring.logical_or_(located.core)
    return edit


def contrast_in_place(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
    return reweighted(edit, text_factor=call.text_contrast().nan_to_num_(0.0, 9.0).div_(9.0).clamp_(0, 1))


def dither(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
    return reweighted(edit, text_factor=torch.rand(len(located.core), call.text))


def by_area(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
    return cut(edit, 1 - float(located.core.float().mean()))


def everything(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
    return attrs.evolve(edit, rows=torch.ones_like(edit.rows))


POLICIES = {
    "negative factor": (lambda e, *_: cut(e, -0.5), {"factors"}),
    "NaN factor": (lambda e, *_: cut(e, float("nan")), {"factors"}),
    "short table": (lambda e, *_: reweighted(e, core=(1.0,) * 3), {"shapes"}),
    "short columns": (lambda e, *_: attrs.evolve(e, columns=ColumnScale((1.0,) * 4)), {"shapes"}),
    "share above 1": (lambda e, *_: attrs.evolve(e, noise=NoiseBlend(core=1.5)), {"factors"}),
    "noise on stock rows alone": (lambda e, *_: attrs.evolve(e, noise=0.5), {"shapes"}),
    "a factor of text tokens for references": (
        lambda e, located, call: reweighted(e, reference_factor=torch.ones(len(located.core), call.text)), {"shapes"},
    ),
    "a factor token by token": (
        lambda e, located, call: reweighted(e, text_factor=torch.full((len(located.core), call.text), -1.0)),
        {"factors"},
    ),
    "columns that are NaN": (
        lambda e, *_: attrs.evolve(e, columns=ColumnScale(ColumnWeights(text=float("nan")))), {"factors"},
    ),
    "float classes": (lambda e, *_: attrs.evolve(e, rows=e.rows.float()), {"shapes"}),
    "a fourth class": (lambda e, *_: attrs.evolve(e, rows=e.rows * 3), {"shapes"}),
    "rows that were not located": (everything, {"located-rows-only", "stock-samples"}),
    "a factor by the batch's area": (by_area, {"samples-independent"}),
    "masks changed in place": (mask_in_place, {"inputs-unchanged"}),
    "contrast changed in place": (contrast_in_place, {"inputs-unchanged"}),
    "random factors": (dither, {"deterministic", "no-global-random"}),
    "a tensor": (lambda e, *_: e.rows, {"protocol"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", POLICIES)
def test_a_broken_policy_is_caught(fault: str) -> None:
    change, wanted = POLICIES[fault]
    failures = failed(check_policy, broken_policy(change))
    assert wanted <= set(failures), failures


def test_the_last_digit_may_differ_alone_and_in_a_batch() -> None:
    """As clamp and pow do on some processors; another factor is caught."""

    def with_error(error: float) -> object:
        def change(edit: FlowEdit, located: Located, call: CallInfo) -> FlowEdit:
            factor = torch.full((len(located.core), call.text), 0.3)
            return reweighted(edit, text_factor=factor * (1 + error) if len(factor) == 1 else factor)

        return broken_policy(change)

    assert check_policy(with_error(1.2e-7))["samples-independent"].status is Status.PASSED
    failures = failed(check_policy, with_error(1e-4))
    assert set(failures) == {"samples-independent"}
    assert "another reweight.text_factor" in failures["samples-independent"]


def test_a_sound_policy_passes() -> None:
    report = check_policy(Cut())
    assert {o.status for o in report.outcomes} == {Status.PASSED}


def test_a_policy_with_bad_mask_options_is_caught() -> None:
    class Wide(Cut):
        @property
        def masks(self) -> MaskOptions:  # type: ignore[override]
            return MaskOptions(ring=-1)

    assert "ring: expected a number of patches >= 0, got -1" in failed(check_policy, Wide())["mask-options"]


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
