"""calibrate: what it promises is kept on its own sets, and when the engine locates."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import torch
from fitting import BENIGN, OPTIONS, UNSAFE, drawn_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from runner import PROBE, make_bank

import uvr_core
from uvr_core import Calibration, UVRError, calibrate
from uvr_core.fit.calibrate import choose, pick
from uvr_core.fit.marks import Marks, marks_of
from uvr_core.fit.scores import ScoredRuns, auroc_of


def marks(scores: np.ndarray, patches: int = 1, masks: np.ndarray | None = None) -> Marks:
    runs = ScoredRuns({"p": scores.astype(np.float32)}, [1.0] * scores.shape[1], (1, scores.shape[2]), masks)
    return marks_of([runs], (0.0,), patches)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), budget=st.sampled_from([0.0, 0.01, 0.1, 0.34, 0.99]), count=st.integers(1, 30),
    patches=st.integers(1, 2), shift=st.sampled_from([-5.0, 0.0, 1.0, 8.0]), ties=st.booleans(),
)  # fmt: skip
def test_a_threshold_keeps_its_budget(
    seed: int, budget: float, count: int, patches: int, shift: float, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    unsafe, benign = rng.normal(shift, 1, (9, 3, 4)), rng.normal(0, 1, (count, 3, 4))
    if ties:
        unsafe, benign = unsafe.round(), benign.round()
    for last in range(3):
        choice = choose("p", 0.0, last, marks(unsafe, patches), marks(benign, patches), budget)

        def share(scores: np.ndarray, last: int = last, threshold: float = choice.threshold) -> float:
            hits = (scores[:, : last + 1].astype(np.float32) >= threshold).sum(-1)
            return float((hits >= patches).any(1).mean())

        assert share(benign) <= budget
        assert share(benign) == pytest.approx(choice.false_positive)
        assert share(unsafe) == pytest.approx(choice.recall)
        assert choice.grow < choice.threshold  # without masks: what more benign images reach than the budget allows
        assert share(benign, threshold=choice.grow) > budget
        assert share(benign, threshold=float(np.nextafter(np.float32(choice.grow), np.float32(np.inf)))) <= budget


def test_grow_maximises_f_half_over_patches() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((6, 1, 8)) < 0.4
    unsafe = (rng.normal(0, 1, (6, 2, 8)) + 2 * masks).astype(np.float32)
    choice = choose("p", 0.0, 1, marks(unsafe, 1, masks), marks(rng.normal(0, 1, (9, 2, 8))), 0.0)
    truth = np.broadcast_to(masks, unsafe.shape)

    def f_half(threshold: float) -> float:
        hits = unsafe >= threshold
        precision, recall = (hits & truth).sum() / hits.sum(), (hits & truth).sum() / truth.sum()
        return float(1.25 * precision * recall / (0.25 * precision + recall))

    assert choice.grow < choice.threshold
    assert f_half(choice.grow) == pytest.approx(max(f_half(t) for t in unsafe.ravel()))
    assert choice.auroc == pytest.approx(auroc_of(unsafe.ravel(), truth.ravel()))


def test_a_collected_token_locates(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    tuned = calibrate(pipe, bank, UNSAFE, BENIGN, 0.34, detector="concept-token", batch_size=10, generate=OPTIONS)
    assert tuned.calibration is not None
    assert tuned.calibration.detector == "concept-token"
    with uvr_core.attach(pipe, concepts=tuned, policy="observe") as reg:
        pipe(UNSAFE[:2], generator=[torch.Generator().manual_seed(i) for i in range(2)], **OPTIONS)
        assert all(-2 <= f.score <= 2 for f in reg.report.findings)
        assert {f.detector for f in reg.report.findings} == {"concept-token"}


@pytest.mark.parametrize("budget", [0.0, 0.34])
def test_calibration_holds_on_its_own_sets_when_the_engine_locates(
    pipe: Any, bank: uvr_core.ConceptBank, budget: float
) -> None:
    """The engine, attached with the calibrated bank, locates exactly the shares that calibrate measured."""
    masks = lambda images, grid: drawn_masks(4)[: len(images)]  # noqa: E731
    tuned = calibrate(pipe, bank, UNSAFE, BENIGN, budget, masks=masks, batch_size=10, generate=OPTIONS)
    c = tuned.calibration
    assert isinstance(c, Calibration)
    assert tuned.probes == (c.probe,)
    assert c.window[0] == 1.0
    assert c.max_false_positive == budget
    assert (len(c.tail), c.benign) == (2, len(BENIGN))
    assert c.tail == tuple(sorted(c.tail, reverse=True))
    assert c.measured["false_positive"] <= budget
    assert (c.measured["unsafe_prompts"], c.measured["benign_prompts"]) == (4, 6)
    assert c.grow is not None
    assert c.grow <= c.threshold
    with uvr_core.attach(pipe, concepts=tuned, policy="observe") as reg:
        for prompts, seed, expected in (
            (UNSAFE, 10_000, c.measured["recall"]),
            (BENIGN, 10_004, c.measured["false_positive"]),
        ):
            generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
            pipe(prompts, generator=generators, **OPTIONS)
            scores = np.array([f.score for f in reg.report.findings])
            assert [f.located for f in reg.report.findings] == (scores >= c.threshold).tolist()
            # calibrate sees features in half precision: a score that close to the threshold may fall on either side
            low, high = (np.mean(scores >= c.threshold + slack) for slack in (5e-3, -5e-3))
            assert low <= expected <= high


def test_calibrating_refuses_what_makes_no_sense(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    for budget in (-0.1, 1.0, float("nan")):
        with pytest.raises(UVRError, match="max_false_positive"):
            calibrate(pipe, bank, UNSAFE, BENIGN, budget, generate=OPTIONS)
    with pytest.raises(UVRError, match="benign_prompts: no prompts given"):
        calibrate(pipe, bank, UNSAFE, [""], generate=OPTIONS)
    foreign = attrs.evolve(bank, fingerprint=attrs.evolve(bank.fingerprint, blocks=57))
    with pytest.raises(uvr_core.ConceptMismatch, match=r"blocks 57 \(model has 4\)"):
        calibrate(pipe, foreign, UNSAFE, BENIGN, generate=OPTIONS)
    with pytest.raises(uvr_core.PluginError, match="did you mean 'contrast'"):
        calibrate(pipe, bank, UNSAFE, BENIGN, detector="contrats", generate=OPTIONS)


def flat(scores: np.ndarray) -> Marks:
    return marks(scores[:, None, None])


def test_margin_is_the_gap_in_units_of_the_benign_tail() -> None:
    benign, unsafe = np.linspace(0, 2, 41), np.linspace(5, 9, 21)
    choice = choose("p", 0.0, 0, flat(unsafe), flat(benign), 0.0)
    low, bound, typical = np.quantile(unsafe, 0.1), 2.0, 1.0
    assert choice.margin == pytest.approx((low - bound) / (bound - typical), rel=1e-4)
    assert choice.threshold == pytest.approx(bound + 0.25 * (low - bound), rel=1e-4)


def test_among_equals_the_widest_margin_wins_and_recall_comes_first() -> None:
    plain = choose("p", 0.0, 0, flat(np.linspace(5, 9, 21)), flat(np.linspace(0, 2, 41)), 0.0)
    wide = attrs.evolve(plain, probe="wide", margin=plain.margin + 1, recall=plain.recall - 1 / 21)
    wider_but_blind = attrs.evolve(plain, probe="blind", margin=plain.margin + 2, recall=plain.recall - 2 / 21)
    assert pick([plain, wide, wider_but_blind], 21).probe == "wide"


def test_calibrate_takes_the_memory_that_recalls_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A concept that is worth 1.5 deviations in every step: too little in one, enough over ten."""
    rng = np.random.default_rng(7)
    sigmas = [1 - step / 10 for step in range(10)]
    benign = rng.normal(0, 1, (200, 10, 16)).astype(np.float32)
    unsafe = rng.normal(0, 1, (40, 10, 16)).astype(np.float32)
    unsafe[:, :, :3] += 1.5
    sets = {40: unsafe, 200: benign}

    def scored(pipe: Any, bank: Any, prompts: Any, **options: Any) -> list[ScoredRuns]:
        return [ScoredRuns({PROBE: sets[len(prompts)]}, sigmas, (4, 4), None)]

    monkeypatch.setattr("uvr_core.fit.calibrate.scored", scored)
    bank, recalls = make_bank(), {}
    for memory, chosen in (((0.0, 0.9), 0.9), ((0.0,), 0.0)):
        made = uvr_core.calibrate(None, bank, ["x"] * 40, ["y"] * 200, 0.01, memory=memory).calibration
        assert made is not None
        assert made.memory == chosen
        assert made.measured["false_positive"] <= 0.01
        recalls[chosen] = made.measured["recall"]
    assert recalls[0.9] > recalls[0.0] + 0.2
    for watched in (3, 10):
        made = uvr_core.calibrate(None, bank, ["x"] * 40, ["y"] * 200, 0.0, memory=(0.9,), steps=(watched,)).calibration
        assert made is not None
        assert watched <= made.measured["steps"] <= 10
    for wrong in ((), (1.5,), (-0.1, 0.5)):
        with pytest.raises(uvr_core.UVRError, match="memory: expected"):
            uvr_core.calibrate(None, bank, ["x"] * 40, ["y"] * 200, memory=wrong)
    for none in ((), (0,), (11,)):
        with pytest.raises(uvr_core.UVRError, match="steps: expected numbers from 1 to the runs' 10"):
            uvr_core.calibrate(None, bank, ["x"] * 40, ["y"] * 200, steps=none)
