"""Editing: features with the facing reference token, where a concept comes from, and masks by the patch threshold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from driven import Driven, plan_of
from PIL import Image
from runner import PROBE, make_bank
from tiny import tiny_zoo

import uvr_core
from uvr_core import ConceptMismatch, load_concepts
from uvr_core.adapter import Layout
from uvr_core.engine.readings import features
from uvr_core.fit.calibrate import choose, pick
from uvr_core.fit.gather import origin_tensors
from uvr_core.fit.moments import Moments
from uvr_core.fit.scores import ScoredRuns
from uvr_core.intercept.calls import AttentionCall, JointCall
from uvr_plugins.detectors import Anchor, Contrast
from uvr_plugins.policies import Observe

GRID, PATCHES, WIDTH = (3, 4), 12, 32
LAYOUT = Layout(PATCHES + 6, PATCHES, GRID, ((2, 3),))
OPTIONS: dict[str, Any] = {
    "height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 1.0, "max_area": 64 * 64,
    "_auto_resize": False,
}  # fmt: skip


@attrs.define
class Script:
    """A detector that gives the scores and origins written down for each step."""

    steps: list[np.ndarray]
    origins: list[list[float] | None]
    seen: list[torch.Tensor] = attrs.field(factory=list)
    asked: int = 0
    name: str = "script"

    def scores(self, features: torch.Tensor, sigma: float, bank: Any, probe: str) -> torch.Tensor:
        self.seen.append(features)
        return torch.from_numpy(self.steps[len(self.seen) - 1]).float()

    def origin(self, features: torch.Tensor, core: torch.Tensor, sigma: float, bank: Any, probe: str) -> Any:
        self.asked += 1
        told = self.origins[len(self.seen) - 1]
        return None if told is None else torch.tensor(told)


def play(detector: Any, layout: Layout = LAYOUT, steps: int = 2, **options: Any) -> tuple[Driven, list[torch.Tensor]]:
    """Two images, one call per step through a run that observes; the outputs of the calls."""
    driven = Driven([plan_of(make_bank(), detector, Observe(), 5.0, **options)])
    generator, outputs = torch.Generator().manual_seed(0), []
    for step in range(steps):
        q, k, v = (torch.randn(2, 2, 3 + layout.image, 16, generator=generator) for _ in range(3))
        outputs.append(torch.nn.functional.scaled_dot_product_attention(q, k, v))
        driven.forward(AttentionCall("a", q, k, v, outputs[-1], None, None), 1 - step / steps, layout)
    return driven, outputs


def scored(*patches: dict[int, float]) -> np.ndarray:
    """(2, N) scores: 0 but for the patches named."""
    scores = np.zeros((2, PATCHES), np.float32)
    for row, given in zip(scores, patches, strict=True):
        for patch, value in given.items():
            row[patch] = value
    return scores


def test_a_patch_is_scored_with_the_reference_token_that_faces_it() -> None:
    detector = Script([scored({}, {})] * 2, [None] * 2)
    _, outputs = play(detector)
    rows = outputs[0].transpose(1, 2).flatten(2)
    patches, reference = rows[:, 3 : 3 + PATCHES], rows[:, 3 + PATCHES :].reshape(2, 2, 3, WIDTH)
    assert torch.equal(detector.seen[0][..., :WIDTH], patches)
    facing = detector.seen[0][..., WIDTH:].reshape(2, *GRID, WIDTH)
    for (y, x), (there_y, there_x) in {(0, 0): (0, 0), (2, 3): (1, 2), (0, 2): (0, 1), (2, 0): (1, 0)}.items():
        assert torch.equal(facing[:, y, x], reference[:, there_y, there_x])


def test_without_references_a_patch_is_scored_alone() -> None:
    detector = Script([scored({}, {})], [None])
    play(detector, Layout(PATCHES, PATCHES, GRID), steps=1)
    assert detector.seen[0].shape == (2, PATCHES, WIDTH)


def test_two_references_are_averaged() -> None:
    detector = Script([scored({}, {})], [None])
    _, (output,) = play(detector, Layout(PATCHES + 12, PATCHES, GRID, ((2, 3), (2, 3))), steps=1)
    rows = output.transpose(1, 2).flatten(2)[:, 3 + PATCHES :]
    assert torch.allclose(detector.seen[0][:, 0, WIDTH:], (rows[:, 0] + rows[:, 6]) / 2)


def test_where_a_concept_comes_from_is_told_once_when_it_is_located_first() -> None:
    """Later steps are regulated, so that they would mislead; an image is asked about in its own first step."""
    detector = Script([scored({1: 9.0}, {}), scored({1: 9.0}, {2: 9.0})], [[-1.0, 7.0], [5.0, 3.0]])
    driven, _ = play(detector)
    assert [f.from_source for f in driven.report.findings] == [False, True]
    (located,) = [state.located for state in driven.states]
    assert located is not None
    assert located.from_source is not None
    assert located.from_source.tolist() == [False, True]
    assert "from the instruction" in str(driven.report)


@pytest.mark.parametrize("told", [None, [float("nan"), float("nan")]])
def test_an_unknown_origin_counts_as_the_source(told: list[float] | None) -> None:
    driven, _ = play(Script([scored({1: 9.0}, {1: 9.0})], [told]), steps=1)
    located = driven.states[0].located
    assert located is not None
    assert located.from_source is not None
    assert located.from_source.tolist() == [True, True]


def test_without_references_nobody_is_asked() -> None:
    detector = Script([scored({1: 9.0}, {})], [[1.0, 1.0]])
    driven, _ = play(detector, Layout(PATCHES, PATCHES, GRID), steps=1)
    assert detector.asked == 0
    located = driven.states[0].located
    assert located is not None
    assert located.from_source is None


@pytest.mark.parametrize(
    ("grow", "patches"),
    [(5.0, {1, 2}), (3.0, {1, 2, 3}), (7.0, {1, 2}), (8.5, {1, 2})],
    ids=["as the threshold", "below: what touches a hit joins", "above: those alone", "above, too few: the hits"],
)
def test_the_mask_is_made_by_the_patch_threshold(grow: float, patches: set[int]) -> None:
    scores = {1: 9.0, 2: 7.5, 3: 4.0, 11: 4.0}
    driven, _ = play(Script([scored(scores, {})], [None]), steps=1, grow=grow, min_patches=2)
    assert set(np.flatnonzero(driven.states[0].core[0]).tolist()) == patches


def test_a_high_patch_threshold_drops_weak_hits() -> None:
    scores = {1: 9.0, 2: 7.5, 11: 6.0}
    wide, _ = play(Script([scored(scores, {})], [None]), steps=1, min_patches=2)
    tight, _ = play(Script([scored(scores, {})], [None]), steps=1, grow=7.0, min_patches=2)
    assert set(np.flatnonzero(wide.states[0].core[0]).tolist()) >= {1, 2, 11}
    assert set(np.flatnonzero(tight.states[0].core[0]).tolist()) == {1, 2}


# ---------------------------------------------------------------------------------------------- the bank


def moments(center: torch.Tensor, count: int, seed: int) -> Moments:
    found = Moments()
    found.add(center + 0.3 * torch.randn(count, len(center), generator=torch.Generator().manual_seed(seed)))
    return found


def test_origin_is_positive_for_the_source_and_zero_halfway() -> None:
    source, words = torch.randn(2, 2 * WIDTH, generator=torch.Generator().manual_seed(3))
    means = {("p", 0, True): moments(source, 60, 1), ("p", 0, False): moments(words, 60, 2)}
    tensors = origin_tensors("p", 1, means)
    direction, offset = tensors["origin/p"][0], float(tensors["origin_offset/p"])
    centers = [means["p", 0, way].mean.float() for way in (True, False)]
    high, low = (float(center @ direction) + offset for center in centers)
    assert high > 1
    assert low == pytest.approx(-high, rel=1e-3)
    assert float(sum(centers) / 2 @ direction) + offset == pytest.approx(0, abs=1e-3 * high)


def test_origin_needs_both_ways_in() -> None:
    means = {("p", 0, True): moments(torch.zeros(4), 60, 1), ("p", 0, False): moments(torch.ones(4), 3, 2)}
    assert origin_tensors("p", 1, means) == {}


def test_contrast_tells_the_origin_by_the_mean_over_the_core() -> None:
    bank = make_bank()
    generator = torch.Generator().manual_seed(5)
    direction = torch.randn(3, 2 * WIDTH, generator=generator)
    tensors = {**bank.tensors, f"origin/{PROBE}": direction, f"origin_offset/{PROBE}": torch.tensor([0.1, 0.2, 0.3])}
    bank = attrs.evolve(bank, tensors=tensors)
    features = torch.randn(2, PATCHES, 2 * WIDTH, generator=generator)
    core = torch.rand(2, PATCHES, generator=generator) > 0.5
    told = Contrast().origin(features, core, 0.79, bank, PROBE)
    assert told is not None
    for sample in range(2):
        expected = features[sample][core[sample]].mean(0) @ direction[1] + 0.2
        assert float(told[sample]) == pytest.approx(float(expected), abs=1e-4)
    assert Contrast().origin(features, core, 0.79, make_bank(), PROBE) is None


def test_a_bank_for_editing_is_refused_in_synthesis_and_one_for_synthesis_serves_editing() -> None:
    bank = make_bank()
    wide = attrs.evolve(bank, tensors={**bank.tensors, f"direction/{PROBE}": torch.randn(3, 2 * WIDTH)})
    features = torch.randn(2, PATCHES, 2 * WIDTH)
    with pytest.raises(ConceptMismatch, match="source images"):
        Contrast().scores(features[..., :WIDTH], 1.0, wide, PROBE)
    for detector in (Contrast(), Anchor()):
        alone = detector.scores(features[..., :WIDTH], 1.0, bank, PROBE)
        assert torch.equal(detector.scores(features, 1.0, bank, PROBE), alone)


def test_collect_on_an_editing_pipeline_learns_the_origin(tmp_path: Path) -> None:
    """The mask source is asked about the sources as well: here red sources show the concept."""
    pipe = tiny_zoo("flux-kontext")
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    sources, marked = [red, blue] * 8, np.zeros((8, 8), bool)
    marked[2:4, 2:4] = True

    def masks(images: Any, grid: tuple[int, int]) -> np.ndarray:
        shows = [image not in (red, blue) or image == red for image in images]
        return np.stack([marked & show for show in shows])

    bank = uvr_core.collect(
        pipe, "x", prompts=["add a cat on the left"] * 16, sources=sources, masks=masks, batch_size=8, generate=OPTIONS,
        probes=(PROBE,),
    )  # fmt: skip
    assert bank.tensor("direction", PROBE).shape == (2, 2 * bank.width)
    assert bank.tensor("anchors", PROBE).shape[1] == bank.width
    assert bank.tensor("origin", PROBE).shape == (2, 2 * bank.width)
    loaded = load_concepts(bank.save(tmp_path / "x.safetensors"))
    found: list[torch.Tensor] = []

    def read(call: JointCall) -> None:
        if call.forward.step == 0:
            tokens = features(call)
            core = torch.from_numpy(marked.reshape(1, -1)).expand(len(tokens), -1)
            told = Contrast().origin(tokens, core, call.forward.sigma, loaded, PROBE)
            assert told is not None
            found.append(told)

    with uvr_core.attach(pipe) as reg, reg.recording(read, (PROBE,)):
        pipe(
            prompt=["add a cat on the left"] * 2, image=[red, blue], **OPTIONS,
            generator=[torch.Generator().manual_seed(seed) for seed in (70, 71)],
        )  # fmt: skip
    assert found[0][0] > 0 > found[0][1]


def test_a_saved_bank_has_the_mode_that_the_umask_allows(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = make_bank().save(tmp_path / "x.safetensors")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


# ---------------------------------------------------------------------------------------------- calibrate


def runs(scores: np.ndarray) -> ScoredRuns:
    return ScoredRuns({"p": scores[:, None, None].astype(np.float32)}, [1.0], (1, 1), None)


def test_margin_is_the_gap_in_units_of_the_benign_tail() -> None:
    benign, unsafe = np.linspace(0, 2, 41), np.linspace(5, 9, 21)
    choice = choose("p", 0.0, 0, runs(unsafe), runs(benign), 0.0, 1)
    low, bound, typical = np.quantile(unsafe, 0.1), 2.0, 1.0
    assert choice.margin == pytest.approx((low - bound) / (bound - typical), rel=1e-4)
    assert choice.threshold == pytest.approx(bound + 0.25 * (low - bound), rel=1e-4)


def test_among_equals_the_widest_margin_wins_and_recall_comes_first() -> None:
    plain = choose("p", 0.0, 0, runs(np.linspace(5, 9, 21)), runs(np.linspace(0, 2, 41)), 0.0, 1)
    wide = attrs.evolve(plain, probe="wide", margin=plain.margin + 1, recall=plain.recall - 1 / 21)
    wider_but_blind = attrs.evolve(plain, probe="blind", margin=plain.margin + 2, recall=plain.recall - 2 / 21)
    assert pick([plain, wide, wider_but_blind], 21).probe == "wide"


def test_a_memory_adds_up_what_no_single_step_shows() -> None:
    """Threshold 5; 4 in each of two steps, in one image; a single 4 in the other, which fades."""
    steps = [scored({1: 4.0}, {2: 4.0}), scored({1: 4.0}, {}), scored({}, {})]
    forgetful, _ = play(Script(steps, [None] * 3), steps=3)
    assert [f.located for f in forgetful.report.findings] == [False, False]
    driven, _ = play(Script(steps, [None] * 3), steps=3, memory=0.9)
    found, other = driven.report.findings
    assert (found.located, found.first_step, found.patches, other.located) == (True, 1, 1, False)
    assert found.score == pytest.approx(4 * 1.9 / (0.8 * 1.81 + 0.2 * 1.9**2) ** 0.5)
    assert found.heat.max() == found.score
    assert other.score == 4.0


def test_calibrate_takes_the_memory_that_recalls_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A concept that is worth 1.5 deviations in every step: too little in one, enough over ten."""
    rng = np.random.default_rng(7)
    sigmas = [1 - step / 10 for step in range(10)]
    benign = rng.normal(0, 1, (200, 10, 16)).astype(np.float32)
    unsafe = rng.normal(0, 1, (40, 10, 16)).astype(np.float32)
    unsafe[:, :, :3] += 1.5
    sets = {40: unsafe, 200: benign}

    def score_runs(pipe: Any, bank: Any, prompts: Any, **options: Any) -> ScoredRuns:
        return ScoredRuns({PROBE: sets[len(prompts)]}, sigmas, (4, 4), None)

    monkeypatch.setattr("uvr_core.fit.calibrate.score_runs", score_runs)
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
