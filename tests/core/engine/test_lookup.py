"""Names and objects become a plan: which threshold, window and probe are in force, and what fits no model."""

from __future__ import annotations

from typing import Any

import attrs
import diffusers
import pytest
import torch
from runner import PROBE, make_bank
from tiny import tiny_flux

from uvr_core import AdapterNotFound, Calibration, ConceptMismatch, SourceLook, UVRError
from uvr_core.engine.lookup import check_plan, find_adapter, fingerprint, make_plan
from uvr_core.engine.plan import ConceptPlan
from uvr_plugins.detectors import Oracle
from uvr_plugins.policies import Noise, Observe, Redirect


def plan(bank: Any = None, policy: Any = "block", detector: Any = None, threshold: float | None = None) -> ConceptPlan:
    transformer = tiny_flux().transformer
    return make_plan(bank or make_bank(), policy, detector, threshold, find_adapter(transformer), transformer)


def calibrated(**fields: Any) -> Any:
    base = Calibration("contrast", PROBE, (0.9, 0.5), 2.0, grow=1.5, min_patches=3, memory=0.5)
    return attrs.evolve(make_bank(), calibration=attrs.evolve(base, **fields))


def test_a_calibration_is_in_force_for_its_own_detector() -> None:
    made = plan(calibrated())
    assert (made.detector_name, made.probe, made.window) == ("contrast", PROBE, (0.9, 0.5))
    assert (made.threshold, made.grow, made.min_patches, made.memory) == (2.0, 1.5, 3, 0.5)
    assert plan(calibrated(), threshold=7.0).threshold == 7.0


def test_for_another_detector_only_the_probe_and_the_window_stay() -> None:
    made = plan(calibrated(), detector="anchor", threshold=0.3)
    assert (made.probe, made.window) == (PROBE, (0.9, 0.5))
    assert (made.threshold, made.grow, made.min_patches, made.memory) == (0.3, 0.3, 1, 0.0)
    with pytest.raises(ConceptMismatch, match="calibrated for 'contrast' and detector 'anchor' needs a threshold"):
        plan(calibrated(), detector="anchor")


def test_a_detector_that_brings_its_threshold_looks_in_every_step() -> None:
    made = plan(calibrated(), detector=Oracle(None))
    assert (made.window, made.threshold, made.exact) == ((1.0, 0.0), Oracle(None).threshold, True)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("SanaTransformer2DModel", "self-attention is linear.*text comes in by cross-attention"),
        ("Kandinsky5Transformer3DModel", "text comes in by cross-attention"),
        ("Kandinsky6Transformer3DModel", "it draws videos.*text comes in by cross-attention"),
        ("HunyuanVideoTransformer3DModel", "it draws videos.*uvr-example-adapter"),
        ("UNet2DConditionModel", "text comes in by cross-attention"),
        ("Cosmos3OmniTransformer", "packed without a batch axis"),
        ("MiniMaxH3Transformer3DModel", "packed into one sequence"),
    ],
)
def test_a_class_for_which_there_can_be_no_adapter_is_refused_with_the_reason(model: str, reason: str) -> None:
    kind = getattr(diffusers, model, None)
    if kind is None:
        pytest.skip(f"diffusers {diffusers.__version__} has no {model}")
    with pytest.raises(AdapterNotFound, match=rf"^{model} cannot be regulated: .*{reason}.*uvr adapters"):
        find_adapter(kind.__new__(kind))
    subclass = type("Finetuned", (kind,), {})
    with pytest.raises(AdapterNotFound, match=r"^Finetuned cannot be regulated"):
        find_adapter(subclass.__new__(subclass))


def test_a_look_at_the_source_is_a_plan_of_its_own() -> None:
    tensors = {**make_bank().tensors, f"source/{PROBE}": torch.zeros(1, 64), f"source_offset/{PROBE}": torch.ones(1)}
    look = SourceLook("contrast", PROBE, (1.0, 0.99), 2.0, min_patches=3, text="make it night")
    bank = attrs.evolve(make_bank(), tensors=tensors, source=look)
    look_plan = plan(bank, threshold=9.0, detector="anchor").look
    assert look_plan is not None
    assert (look_plan.detector_name, look_plan.probe, look_plan.window) == ("contrast", PROBE, (1.0, 0.99))
    assert (look_plan.threshold, look_plan.grow, look_plan.min_patches) == (2.0, 2.0, 3)
    assert look_plan.bank.tensor("offset", PROBE).tolist() == [1.0]
    assert plan(make_bank(), threshold=9.0, detector="anchor").look is None
    away = attrs.evolve(look, probe="blocks.7")
    moved = {**tensors, "source/blocks.7": torch.zeros(1, 64), "source_offset/blocks.7": torch.ones(1)}
    wrong = plan(attrs.evolve(bank, tensors=moved, source=away), threshold=9.0, detector="anchor")
    with pytest.raises(ConceptMismatch, match=r"probe 'blocks\.7' is no joint attention block"):
        check_plan(wrong, bank.fingerprint, (PROBE,))


def test_objects_without_their_method_are_refused() -> None:
    with pytest.raises(UVRError, match=r"no edit\(located, call\) method"):
        plan(policy=object())
    with pytest.raises(UVRError, match="no scores"):
        plan(detector=object())


def test_a_probe_that_is_no_tap_is_refused_with_the_nearest() -> None:
    transformer = tiny_flux().transformer
    taps = find_adapter(transformer).taps(transformer)
    model = fingerprint(transformer, taps)
    check_plan(plan(), model, tuple(taps))
    wrong = calibrated(probe=PROBE.replace("single_transformer", "singel_transformer"))
    with pytest.raises(ConceptMismatch, match=f"did you mean '{PROBE}'"):
        check_plan(plan(wrong), model, tuple(taps))


@pytest.mark.parametrize(
    ("policy", "acts", "needs_uncond", "ring"),
    [(Observe(), False, False, 1), (Redirect(ring=2), True, True, 2), (Noise(), True, False, 0)],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_a_policy_declares_is_in_the_plan(policy: Any, acts: bool, needs_uncond: bool, ring: int) -> None:
    made = plan(policy=policy, threshold=0.5)
    assert (made.acts, made.needs_uncond, made.masks.ring) == (acts, needs_uncond, ring)


def test_what_a_policy_does_not_say_of_its_masks_is_usual() -> None:
    class Bare:
        def edit(self, located: Any, call: Any) -> None:
            return None

    assert attrs.astuple(plan(policy=Bare(), threshold=0.5).masks) == (1, 0, 1.0)
