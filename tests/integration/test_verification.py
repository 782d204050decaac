"""Verified erasure: what still stands at the end is withheld or drawn again, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from rig import MASK, PIPELINES, STEPS, Rig, TextOnly

import uvr_core
from uvr_core import Calibration, ConceptMismatch, UnsafeContent, UVRError
from uvr_core.engine.readings import features
from uvr_core.intercept.calls import JointCall
from uvr_core.plugins import registry
from uvr_core.protocols import CallInfo, FlowEdit, KeyWeights, Located, MaskOptions, Reweight, row_classes


class SelfOnly:
    """Located rows attend to themselves alone."""

    name, masks = "self-only", MaskOptions(ring=0)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit:
        alone = KeyWeights(text=0.0, safe=0.0, reference=0.0)
        return FlowEdit(row_classes(located), Reweight(alone, alone))


def verified_bank(rig: Rig, threshold: float, window: tuple[float, float] = (0.9, 0.0)) -> uvr_core.ConceptBank:
    """The rig's bank with a verification in its first block: the cosine to its anchors, behind the edit."""
    (probe,) = rig.bank.probes
    how = Calibration("anchor-cosine", probe, window, threshold, None, 1)
    return attrs.evolve(rig.bank, verification=how)


def scores(rig: Rig, **options: Any) -> list[float]:
    """What the verification sees of both images."""
    with rig.attach(concepts=verified_bank(rig, 10.0), **options) as reg:
        rig.run()
        return [f.verified_score for f in reg.report.findings]


@pytest.mark.parametrize("name", PIPELINES)
def test_what_is_gone_is_handed_out_as_without_a_verification(name: str) -> None:
    rig = Rig(name)
    plain = rig.regulated_run()
    with rig.attach(concepts=verified_bank(rig, 10.0)) as reg:
        assert torch.equal(rig.run(), plain)
        assert [f.outcome for f in reg.report.findings] == ["not located", "erased"]
        assert reg.report.draws == 1
    with rig.attach(concepts=verified_bank(rig, -10.0), verify=False) as reg:
        assert torch.equal(rig.run(), plain)
        assert [f.outcome for f in reg.report.findings] == ["not located", "regulated"]


def heat(rig: Rig, after: bool = True, **options: Any) -> torch.Tensor:
    """(B, N): each patch's largest score by the verification's detector, of the output before or behind the edits."""
    (probe,), scores = rig.bank.probes, []
    detector = registry().make("detector", "anchor-cosine").object

    def read(call: JointCall) -> None:
        if call.forward.sigma <= 0.9:
            scores.append(detector.scores(features(call), call.forward.sigma, rig.bank, probe))

    with rig.attach(**options) as reg, reg.recording(read, [probe], after=after):
        rig.run()
    return torch.stack(scores).amax(0)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_score_is_that_of_the_output_behind_the_edit(name: str) -> None:
    rig = Rig(name)
    behind = heat(rig)
    assert scores(rig) == pytest.approx(behind.amax(1).tolist(), abs=1e-4)
    moved = (behind != heat(rig, after=False)).reshape(MASK.shape)
    assert torch.equal(moved & MASK, MASK)


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen-image-edit"])
def test_what_still_stands_is_withheld(name: str) -> None:
    rig = Rig(name)
    low, high = sorted(told := scores(rig))
    plain = rig.regulated_run()
    with rig.attach(concepts=verified_bank(rig, (low + high) / 2)) as reg:
        images = rig.run()
        stands = told.index(high)
        assert images[stands] is None
        assert torch.equal(images[1 - stands], plain[1 - stands])
        assert reg.report.findings[stands].outcome == "withheld"
        assert reg.report.refused == (stands,)
        assert "still stood at the end" in str(reg.report)
    with rig.attach(concepts=verified_bank(rig, low - 1e-3)) as reg:
        with pytest.raises(UnsafeContent, match="still stands") as caught:
            rig.run()
        assert caught.value.samples == (0, 1)
        assert reg.report.posture == "refused"


def test_who_only_observes_withholds_nothing() -> None:
    rig = Rig("sd3")
    with rig.attach(concepts=verified_bank(rig, -10.0), policy="observe") as reg:
        stock = rig.run()
        assert [f.outcome for f in reg.report.findings] == ["let through", "let through"]
    assert torch.equal(stock, rig.run())


def test_a_schedule_that_never_meets_the_verification_is_refused() -> None:
    rig = Rig("sd3")
    with (
        rig.attach(concepts=verified_bank(rig, 10.0, window=(1e-6, 0.0))),
        pytest.raises(UVRError, match="never verified"),
    ):
        rig.run()


@attrs.frozen(eq=False)
class Wider:
    """Locates a mask (B, N) that is given."""

    mask: torch.Tensor
    name: str = "wider"
    threshold: float = 0.0

    def scores(self, features: torch.Tensor, sigma: float, bank: uvr_core.ConceptBank, probe: str) -> torch.Tensor:
        return self.mask.float() - 0.5


@pytest.mark.parametrize("name", ["sd3", "qwen-image", "qwen-image-edit"])
def test_it_is_drawn_again_from_the_same_noise_where_it_was_and_where_it_stood(name: str) -> None:
    rig = Rig(name)
    first, shown = rig.regulated_run(), heat(rig)
    bar = float(shown[1].max()) - 1e-6  # one patch of the second image stands
    wider = Wider(MASK.flatten(1) | (shown >= bar))
    with rig.attach(detector=wider, policy=SelfOnly()):
        second = rig.run()
    expected = "erased" if heat(rig, detector=wider, policy=SelfOnly())[1].max() < bar else "withheld"
    with rig.attach(concepts=verified_bank(rig, bar), policy="selective", escalate=(TextOnly(), SelfOnly())) as reg:
        images = rig.run()
        finding = reg.report.findings[1]
        assert (finding.policy, finding.outcome, finding.steps_regulated) == ("self-only", expected, STEPS)
        assert reg.report.draws == 2
    assert images[1] is None if expected == "withheld" else torch.equal(images[1], second[1])
    if shown[0].max() < bar:
        assert torch.equal(images[0], first[0])


def test_what_stands_after_the_last_policy_is_withheld() -> None:
    rig = Rig("sd3")
    with rig.attach(concepts=verified_bank(rig, -10.0), policy="selective", escalate=(TextOnly(), SelfOnly())):
        with pytest.raises(UnsafeContent, match="still stands"):
            rig.run()
    with rig.attach(concepts=verified_bank(rig, -10.0), policy="selective", escalate=(TextOnly(), "refuse")) as reg:
        assert reg.escalation == ()
        with pytest.raises(UnsafeContent, match="still stands"):
            rig.run()


def test_a_bare_transformer_raises_at_the_end_and_cannot_draw_again() -> None:
    rig = Rig("sd3")
    with rig.attach(rig.transformer, concepts=verified_bank(rig, -10.0)):
        with pytest.raises(UnsafeContent, match="still stands"):
            rig.run()
    with pytest.raises(UVRError, match="cannot be drawn again"):
        rig.attach(
            rig.transformer, concepts=verified_bank(rig, 0.0), policy="selective", escalate=(TextOnly(), SelfOnly())
        )
    with pytest.raises(ConceptMismatch, match="nothing tells whether 'x' still stands"):
        rig.attach(policy="selective", escalate=(TextOnly(), SelfOnly()))


def test_detach_leaves_the_stock_pipeline() -> None:
    rig = Rig("sd3")
    stock = rig.run()
    with rig.attach(concepts=verified_bank(rig, 10.0), policy="selective", escalate=(TextOnly(), SelfOnly())):
        rig.run()
    assert torch.equal(rig.run(), stock)


def test_the_policy_and_what_it_escalates_to_are_given_once() -> None:
    rig = Rig("sd3")
    with pytest.raises(UVRError, match="give one of them"):
        rig.attach(concepts=verified_bank(rig, 0.0), policy="block", escalate=("selective", "block"))
