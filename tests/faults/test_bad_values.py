"""Detectors and policies that give what nobody could use: no image comes out, and the error says whose it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import pytest
import torch
from rig import PIPELINES, STEPS, Rig, Scores, TextOnly, at, one, reference

import uvr_core
from uvr_core.protocols import (
    CallInfo,
    ColumnScale,
    ColumnWeights,
    FlowEdit,
    KeyWeights,
    Located,
    MaskOptions,
    NoiseBlend,
    Projection,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def by_turns(names: Iterable[str]) -> list[tuple[str, str]]:
    """Each on one pipeline: for what does not depend on the model's class."""
    return list(zip(names, itertools.cycle(PIPELINES), strict=False))


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
    masks: MaskOptions = attrs.field(default=MaskOptions(ring=0))

    def edit(self, located: Located, call: CallInfo) -> Any:
        edit = TextOnly().edit(located, call)
        return self.change(edit, located, call) if self.on and located.step == STEPS - 1 else edit


def with_(**fields: Any) -> Callable[[FlowEdit, Located, CallInfo], FlowEdit]:
    return lambda edit, located, call: attrs.evolve(edit, **fields)


def reweighted(**fields: Any) -> Callable[[FlowEdit, Located, CallInfo], FlowEdit]:
    return lambda edit, located, call: attrs.evolve(edit, reweight=attrs.evolve(edit.reweight, **fields))


def core(*factors: float) -> Callable[[FlowEdit, Located, CallInfo], FlowEdit]:
    return lambda edit, located, call: reweighted(core=KeyWeights(*factors))(edit, located, call)


def noise(**fields: Any) -> Callable[[FlowEdit, Located, CallInfo], FlowEdit]:
    return lambda edit, located, call: attrs.evolve(edit, noise=NoiseBlend(**fields))


def factor(fill: float, extra: int = 0) -> Callable[[FlowEdit, Located, CallInfo], FlowEdit]:
    """Of every text token."""
    return lambda edit, located, call: reweighted(text_factor=torch.full((len(located.core), call.text + extra), fill))(
        edit, located, call
    )


def columns(fill: float) -> Callable[[FlowEdit, Located, CallInfo], FlowEdit]:
    return lambda edit, located, call: attrs.evolve(edit, columns=ColumnScale(output=ColumnWeights(output=fill)))


def projection(fill: float = 1.0, width: int = 32, share: float = 1.0) -> Any:
    return lambda edit, located, call: attrs.evolve(
        edit, projection=Projection(torch.full((width,), fill), torch.ones(located.core.shape), share, share)
    )


BAD_EDITS: dict[str, tuple[Callable[[FlowEdit, Located, CallInfo], object], str]] = {
    "table: NaN": (core(torch.nan), "KeyWeights.text: expected"),
    "table: negative": (core(-0.5), "KeyWeights.text: expected"),
    "table: infinite": (core(torch.inf), "KeyWeights.text: expected"),
    "table: two lines": (reweighted(ring=None), "Reweight.ring: expected"),
    "table: three columns": (reweighted(core=(1.0,) * 3), "Reweight.core: expected"),
    "table: everything cut": (core(0.0, 0.0, 0.0, 0.0), "gave NaN or Inf"),
    "alpha: NaN": (noise(core=torch.nan), "NoiseBlend.core: expected"),
    "alpha: above 1": (noise(core=1.5), "NoiseBlend.core: expected"),
    "alpha: two shares": (with_(noise=(0.0, 0.5)), "FlowEdit.noise: expected"),
    "noise: unknown": (noise(kind="pink", core=0.5), "NoiseBlend.kind: expected"),
    "text: unknown": (reweighted(text="none"), "Reweight.text: expected"),
    "rows: a patch too many": (
        lambda edit, located, call: attrs.evolve(edit, rows=torch.nn.functional.pad(edit.rows, (0, 1))),
        "FlowEdit.rows: expected",
    ),
    "rows: of one sample": (
        lambda edit, located, call: attrs.evolve(edit, rows=edit.rows[-1:]), "FlowEdit.rows: expected",
    ),
    "rows: floats": (lambda edit, located, call: attrs.evolve(edit, rows=edit.rows.float()), "FlowEdit.rows: expected"),
    "text factor: NaN": (factor(torch.nan), "gave NaN or Inf"),
    "text factor: negative": (factor(-1.0), "gave NaN or Inf"),
    "text factor: infinite": (factor(torch.inf), "gave NaN or Inf"),
    "text factor: a token too many": (factor(1.0, extra=1), "Reweight.text_factor: expected"),
    "text factor: a list": (reweighted(text_factor=[1.0]), "Reweight.text_factor: expected"),
    "reference factor: wrong": (reweighted(reference_factor=torch.ones(2, 3)), "Reweight.reference_factor: expected"),
    "columns: NaN": (columns(torch.nan), "ColumnWeights.output: expected"),
    "columns: negative": (columns(-1.0), "ColumnWeights.output: expected"),
    "columns: four": (lambda e, *_: attrs.evolve(e, columns=ColumnScale((1.0,) * 4)), "ColumnScale.text: expected"),
    "projection: NaN": (projection(torch.nan), "gave NaN or Inf"),
    "projection: NaN offset": (
        lambda edit, located, call: attrs.evolve(
            edit, projection=Projection(torch.ones(32), torch.full(located.core.shape, torch.nan))
        ),
        "gave NaN or Inf",
    ),
    "projection: too wide": (projection(width=33), "Projection.vector: expected"),
    "projection: negative": (projection(share=-1.0), "Projection.core: expected"),
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


def test_a_bare_transformer_raises_in_the_forward_itself() -> None:
    """There is no call of a pipeline at whose end to look."""
    rig, policy = Rig("flux"), Edits(factor(torch.nan))
    with rig.attach(to=rig.transformer, policy=policy):
        with pytest.raises(uvr_core.UVRError, match="gave NaN or Inf"):
            rig.run(callback_on_step_end=at(STEPS - 1, lambda: pytest.fail("the forward came back")))
        policy.on = False
        assert torch.equal(rig.run(), reference("flux"))
