"""Detectors and policies that give what nobody could use: no image comes out, and the error says whose it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import pytest
import torch
from rig import PIPELINES, STEPS, Rig, Second, TextOnly, reference

import uvr_core
from uvr_core.protocols import CallInfo, ColumnScale, FlowEdit, Located, Projection

pytestmark = pytest.mark.usefixtures("one_thread")


def by_turns(names: Iterable[str]) -> list[tuple[str, str]]:
    """Each on one pipeline: for what does not depend on the model's class."""
    return list(zip(names, itertools.cycle(PIPELINES), strict=False))


@attrs.define
class Scores:
    """Second's scores, changed from the second step on, while `on`."""

    change: Callable[[torch.Tensor], object]
    on: bool = True
    steps: int = 0
    name: str = "scores"
    threshold: float = 0.0

    def scores(self, features: torch.Tensor, sigma: float, bank: uvr_core.ConceptBank, probe: str) -> Any:
        self.steps += 1
        found = Second().scores(features, sigma, bank, probe)
        return self.change(found) if self.on and self.steps == STEPS else found


def one(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """In one patch of the sample in which nothing is located."""

    def change(scores: torch.Tensor) -> torch.Tensor:
        scores[0, 17] = value
        return scores

    return change


BAD_SCORES: dict[str, tuple[Callable[[torch.Tensor], object], str]] = {
    "NaN in one sample": (one(torch.nan), "NaN or Inf in the score"),
    "+Inf in one sample": (one(torch.inf), "NaN or Inf in the score"),
    "overflow of float32": (lambda s: s.double() * 1e300, "NaN or Inf in the score"),
    "a patch too many": (lambda s: torch.cat([s, s[:, :1]], 1), "expected a tensor"),
    "a trailing axis": (lambda s: s[..., None], "expected a tensor"),
    "a sample too few": (lambda s: s[:1], "expected a tensor"),
    "no tensor": (lambda s: s.numpy(), "expected a tensor"),
    "nothing": (lambda s: None, "expected a tensor"),
}


@pytest.mark.parametrize(
    ("what", "name"), [("NaN in one sample", name) for name in PIPELINES[1:]] + by_turns(BAD_SCORES)
)
def test_bad_scores_at_the_last_step(what: str, name: str) -> None:
    change, says = BAD_SCORES[what]
    rig, detector = Rig(name), Scores(change)
    stock = rig.run()
    with rig.attach(detector=detector) as reg:
        with pytest.raises(uvr_core.UVRError, match=says):
            rig.run()
        assert detector.steps == STEPS
        assert reg.report is None
        detector.on = False
        assert torch.equal(rig.run(), reference(name))
    assert torch.equal(rig.run(), stock)


@attrs.define
class Edits:
    """TextOnly's edit, changed at the last step, while `on`."""

    change: Callable[[FlowEdit, Located, CallInfo], object]
    on: bool = True
    name: str = "edits"
    ring: int = 0

    def edit(self, located: Located, call: CallInfo) -> Any:
        edit = TextOnly().edit(located, call)
        return self.change(edit, located, call) if self.on and located.step == STEPS - 1 else edit


def table(*lines: tuple[float, ...]) -> Callable[[FlowEdit, Located, CallInfo], FlowEdit]:
    return lambda edit, located, call: attrs.evolve(edit, table=lines)


def with_(**fields: Any) -> Callable[[FlowEdit, Located, CallInfo], FlowEdit]:
    return lambda edit, located, call: attrs.evolve(edit, **fields)


def factor(fill: float, extra: int = 0) -> Callable[[FlowEdit, Located, CallInfo], FlowEdit]:
    """Of every text token."""
    return lambda edit, located, call: attrs.evolve(
        edit, text_factor=torch.full((len(located.core), call.text + extra), fill)
    )


def columns(fill: float, width: int = 5) -> Callable[[FlowEdit, Located, CallInfo], FlowEdit]:
    return with_(columns=ColumnScale(((1.0,) * width, (fill,) * width, (1.0,) * width)))


def projection(fill: float = 1.0, width: int = 32, strength: Any = (0.0, 1.0, 1.0)) -> Any:
    return lambda edit, located, call: attrs.evolve(
        edit, projection=Projection(torch.full((width,), fill), torch.ones(located.core.shape), strength)
    )


SAME = (1.0,) * 4


BAD_EDITS: dict[str, tuple[Callable[[FlowEdit, Located, CallInfo], object], str]] = {
    "table: NaN": (table(SAME, (torch.nan, 1.0, 1.0, 1.0), SAME), "FlowEdit.table: expected"),
    "table: negative": (table(SAME, (-0.5, 1.0, 1.0, 1.0), SAME), "FlowEdit.table: expected"),
    "table: infinite": (table(SAME, (torch.inf, 1.0, 1.0, 1.0), SAME), "FlowEdit.table: expected"),
    "table: two lines": (table(SAME, SAME), "FlowEdit.table: expected"),
    "table: three columns": (table(*((1.0,) * 3,) * 3), "FlowEdit.table: expected"),
    "table: everything cut": (table(SAME, (0.0,) * 4, SAME), "gave NaN or Inf"),
    "alpha: NaN": (with_(alpha=(0.0, torch.nan, 0.0)), "FlowEdit.alpha: expected"),
    "alpha: above 1": (with_(alpha=(0.0, 1.5, 0.0)), "FlowEdit.alpha: expected"),
    "alpha: two shares": (with_(alpha=(0.0, 0.5)), "FlowEdit.alpha: expected"),
    "noise: unknown": (with_(noise="pink", alpha=(0.0, 0.5, 0.0)), "FlowEdit.noise: expected"),
    "text: unknown": (with_(text="none"), "FlowEdit.text: expected"),
    "rows: a patch too many": (
        lambda edit, located, call: attrs.evolve(edit, row_class=torch.nn.functional.pad(edit.row_class, (0, 1))),
        "FlowEdit.row_class: expected",
    ),
    "rows: of one sample": (
        lambda edit, located, call: attrs.evolve(edit, row_class=edit.row_class[-1:]), "FlowEdit.row_class: expected",
    ),
    "rows: floats": (
        lambda edit, located, call: attrs.evolve(edit, row_class=edit.row_class.float()),
        "FlowEdit.row_class: expected",
    ),
    "text factor: NaN": (factor(torch.nan), "gave NaN or Inf"),
    "text factor: negative": (factor(-1.0), "gave NaN or Inf"),
    "text factor: infinite": (factor(torch.inf), "gave NaN or Inf"),
    "text factor: a token too many": (factor(1.0, extra=1), "FlowEdit.text_factor: expected"),
    "text factor: a list": (with_(text_factor=[1.0]), "FlowEdit.text_factor: expected"),
    "reference factor: wrong": (with_(reference_factor=torch.ones(2, 3)), "FlowEdit.reference_factor: expected"),
    "columns: NaN": (columns(torch.nan), "FlowEdit.columns.table: expected"),
    "columns: negative": (columns(-1.0), "FlowEdit.columns.table: expected"),
    "columns: four": (columns(1.0, width=4), "FlowEdit.columns.table: expected"),
    "projection: NaN": (projection(torch.nan), "gave NaN or Inf"),
    "projection: NaN offset": (
        lambda edit, located, call: attrs.evolve(
            edit, projection=Projection(torch.ones(32), torch.full(located.core.shape, torch.nan), (0.0, 1.0, 1.0))
        ),
        "gave NaN or Inf",
    ),
    "projection: too wide": (projection(width=33), "FlowEdit.projection.vector: expected"),
    "projection: negative": (projection(strength=(0.0, -1.0, 0.0)), "FlowEdit.projection.strength: expected"),
    "no edit at all": (lambda edit, located, call: located, "returned Located"),
}  # fmt: skip


@pytest.mark.parametrize(("what", "name"), by_turns(BAD_EDITS))
def test_bad_edits_at_the_last_step(what: str, name: str) -> None:
    change, says = BAD_EDITS[what]
    rig, policy = Rig(name), Edits(change)
    stock = rig.run()
    with rig.attach(policy=policy) as reg:
        with pytest.raises(uvr_core.UVRError, match=says):
            rig.run()
        assert reg.report is None
        policy.on = False
        assert torch.equal(rig.run(), reference(name))
    assert torch.equal(rig.run(), stock)
