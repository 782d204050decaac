"""attach: what it takes, and what it refuses by name."""

from __future__ import annotations

from typing import Any

import attrs
import diffusers
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from rig import Rig
from runner import Runner, make_bank

import uvr_core
from uvr_core.ops.tail import threshold_at
from uvr_plugins.policies import Uvr


def test_attached_without_concepts_is_bitwise_stock_and_says_observe(runner: Runner) -> None:
    stock = runner.run()
    with uvr_core.attach(runner.pipe) as reg:
        assert np.array_equal(runner.run(), stock)
        report = reg.report
    assert report is not None
    assert (report.posture, report.steps, report.passes, report.taps, report.fired) == ("observe", 3, 1, 4, 12)


def test_every_concept_has_its_own_policy_and_threshold(runner: Runner) -> None:
    """Masks are the detector's: one concept is everywhere, the other nowhere."""
    banks = [make_bank(name) for name in ("a", "b")]
    stock = runner.run()
    with uvr_core.attach(runner.pipe, concepts=banks[:1], policy="block", threshold=-1e6):
        blocked = runner.run()
    plan = [(banks[0], "block"), (banks[1], Uvr(alpha=1.0))]
    for threshold, expected in (
        ({"a": 1e6, "b": 1e6}, stock),
        ({"a": -1e6, "b": 1e6}, blocked),
        ({"b": -1e6, "a": -1e6}, blocked),  # everything is claimed by the first listed
    ):
        with uvr_core.attach(runner.pipe, concepts=plan, threshold=threshold) as reg:
            assert np.array_equal(runner.run(), expected)
            for finding in reg.report.findings:
                assert finding.threshold == threshold[finding.concept]
                assert finding.located == (threshold[finding.concept] < 0)
                assert (finding.steps_regulated == 3) == (finding.concept == "a" and finding.located)
    with uvr_core.attach(
        runner.pipe, concepts=[make_bank("a", threshold=1e6), make_bank("b")], threshold={"b": 7.0}
    ) as reg:
        assert [concept.threshold for concept in reg.plan] == [1e6, 7.0]


def test_a_pipeline_around_a_unet_is_refused_by_its_class() -> None:
    unet = diffusers.UNet2DConditionModel(
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), block_out_channels=(4,), layers_per_block=1,
        norm_num_groups=2, cross_attention_dim=4, attention_head_dim=2,
    )  # fmt: skip
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor"))
    pipe = diffusers.StableDiffusionPipeline(**parts, unet=unet, requires_safety_checker=False)
    with pytest.raises(uvr_core.AdapterNotFound, match=r"^UNet2DConditionModel cannot be regulated: .*cross-attention"):
        uvr_core.attach(pipe)


def test_refusals_name_what_is_wrong(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    with pytest.raises(uvr_core.AdapterNotFound, match="did you mean 'flux'"):
        uvr_core.attach(runner.pipe, "fluxx")
    with pytest.raises(uvr_core.AdapterNotFound, match="no adapter recognises Linear"):
        uvr_core.attach(torch.nn.Linear(2, 2))
    with pytest.raises(uvr_core.AdapterMismatch, match="expected a pipeline with a transformer"):
        uvr_core.attach("flux")
    with pytest.raises(uvr_core.ConceptMismatch, match=r"heads 4 \(model has 2\)"):
        uvr_core.attach(runner.pipe, concepts=make_bank(heads=4))
    with pytest.raises(uvr_core.PluginError, match="did you mean 'uvr'"):
        uvr_core.attach(runner.pipe, concepts=bank, policy="uvrr")
    for concepts in (None, [(bank, "block")]):  # nothing would come to use the policy
        with pytest.raises(uvr_core.PluginError, match="unknown policy 'blok'; did you mean 'block'"):
            uvr_core.attach(runner.pipe, concepts=concepts, policy="blok")
    with pytest.raises(uvr_core.PluginError, match="unknown detector 'anchr'; did you mean 'anchor'"):
        uvr_core.attach(runner.pipe, detector="anchr")
    with pytest.raises(uvr_core.UVRError, match="policy 'int' has no edit"):
        uvr_core.attach(runner.pipe, policy=5)
    with pytest.raises(uvr_core.ConceptMismatch, match="twice"):
        uvr_core.attach(runner.pipe, concepts=[bank, bank])
    with pytest.raises(
        uvr_core.ConceptMismatch, match=r"threshold: no concept 'weapn' is given; did you mean 'weapon'"
    ):
        uvr_core.attach(runner.pipe, concepts=make_bank("weapon"), threshold={"weapn": 1.0})
    with pytest.raises(uvr_core.ConceptMismatch, match=r"threshold: no concept 'x' is given$"):
        uvr_core.attach(runner.pipe, threshold={"x": 1.0})
    with pytest.raises(uvr_core.ConceptMismatch, match="detector 'anchor' needs a threshold"):
        uvr_core.attach(runner.pipe, concepts=[bank], detector="anchor", threshold={})
    with pytest.raises(uvr_core.ConceptMismatch, match=r"'concept-token'.*collect it again"):
        with uvr_core.attach(runner.pipe, concepts=bank, detector="concept-token", threshold=0.1):
            runner.run()
    with pytest.raises(uvr_core.ConceptMismatch, match="needs a threshold"):
        uvr_core.attach(runner.pipe, concepts=bank, detector="anchor")
    assert type(runner.pipe) is FluxPipeline


def test_a_look_at_the_source_takes_its_part_of_the_budget() -> None:
    rig, tail = Rig("flux-kontext"), tuple(float(n) / 10 for n in range(20, 0, -1))
    probe, width = rig.bank.probes[0], rig.bank.width
    look = uvr_core.SourceLook("contrast", probe, (1.0, 0.99), 0.5, tail=tail, benign=200, text="make it night")
    bank = attrs.evolve(
        rig.bank,
        tensors={
            **rig.bank.tensors,
            f"source/{probe}": torch.ones(1, 2 * width),
            f"source_offset/{probe}": torch.ones(1),
        },
        calibration=uvr_core.Calibration("anchor", probe, (1.0, 0.0), 0.5, tail=tail, benign=200),
        source=look,
    )
    for options, expected in (({}, 0.02 / 2), ({"look": False}, 0.02)):
        with uvr_core.attach(rig.pipe, concepts=bank, max_false_positive=0.02, **options) as reg:
            (plan,) = reg.plan
            assert plan.threshold == threshold_at(tail, 200, expected)
            assert (plan.look is None) == bool(options)
            assert plan.look is None or plan.look.threshold == threshold_at(tail, 200, expected)
    blind = attrs.evolve(bank, source=attrs.evolve(look, tail=(), benign=0))
    with pytest.raises(uvr_core.ConceptMismatch, match="the look at the source of concept 'x' does not know"):
        uvr_core.attach(rig.pipe, concepts=blind, max_false_positive=0.02)


def test_a_budget_for_all_concepts_raises_their_thresholds(runner: Runner) -> None:
    tail = tuple(float(n) / 10 for n in range(20, 0, -1))

    def banks(count: int, threshold: float = 0.5) -> list[uvr_core.ConceptBank]:
        plain = [make_bank(f"c{i}", threshold) for i in range(count)]
        how = attrs.evolve(plain[0].calibration, tail=tail, benign=200)
        return [attrs.evolve(bank, calibration=how) for bank in plain]

    def thresholds(count: int, budget: float | None, **options: Any) -> list[float]:
        with uvr_core.attach(runner.pipe, concepts=banks(count), max_false_positive=budget, **options) as reg:
            return [concept.threshold for concept in reg.plan]

    assert thresholds(1, None) == [0.5]
    assert thresholds(1, 0.02) == [threshold_at(tail, 200, 0.02)]
    assert thresholds(20, 0.02) == [threshold_at(tail, 200, 0.001)] * 20
    assert thresholds(1, 0.02) < thresholds(1, 0.001)
    assert thresholds(2, 0.02, threshold={"c1": 0.1}) == [threshold_at(tail, 200, 0.01), 0.1]
    with uvr_core.attach(runner.pipe, concepts=banks(1, threshold=99.0), max_false_positive=0.02) as reg:
        assert reg.plan[0].threshold == 99.0
    with pytest.raises(uvr_core.UVRError, match=r"expected a share in 0\.\.1, got 2"):
        uvr_core.attach(runner.pipe, concepts=banks(1), max_false_positive=2)
    with pytest.raises(uvr_core.ConceptMismatch, match="'x' does not know its benign scores"):
        uvr_core.attach(runner.pipe, concepts=make_bank(), max_false_positive=0.02)
