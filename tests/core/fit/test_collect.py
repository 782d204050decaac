"""collect and calibrate: the direction's algebra, and what calibration promises, kept on real (tiny) generations."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runner import Runner, make_bank
from tiny import tiny_flux

import uvr_core
from uvr_core import Calibration, UVRError, calibrate, collect, load_concepts
from uvr_core.learning import (
    Moments,
    ScoredRuns,
    _choose,
    auroc_of,
    feeding_rows,
    image_scores,
    score_runs,
    whitened_direction,
)
from uvr_core.ops.masks import ring_of
from uvr_core.ops.mass import flow_contrast, mass_on
from uvr_core.seam import AttentionCall

OPTIONS: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2}
UNSAFE = ["a knife on the left", "a pistol", "a bomb at the top", "a knife"]
BENIGN = ["a cat", "a dog on the right", "a star", "a hat", "a fish at the top", "a tree"]

# ---------------------------------------------------------------------------------------------- the direction


def moments(x: torch.Tensor, full: bool) -> Moments:
    result = Moments(full)
    for part in x.split(37):  # in uneven pieces, as images come
        result.add(part)
    return result


def stretched(count: int, shift: float, seed: int) -> torch.Tensor:
    """(count, 12) Gaussian: the shift lies on a quiet axis, beside an axis that is 30 times louder."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 12, generator=generator) * torch.tensor([30.0] + [1.0] * 11) + 5
    x[:, 1] += shift
    x[:, 0] += shift * 6  # a difference of means that the loud axis drowns
    return x


@pytest.mark.parametrize("full", [True, False])
def test_moments_are_numpys(full: bool) -> None:
    x = stretched(400, 1.0, 0)
    m = moments(x, full)
    np.testing.assert_allclose(m.mean, x.double().mean(0), atol=1e-6)
    covariance = np.cov(x.double().numpy().T, bias=True)
    np.testing.assert_allclose(m.covariance, covariance if full else np.diag(covariance), atol=1e-4)


@pytest.mark.parametrize("full", [True, False])
def test_scores_have_mean_0_and_deviation_1_over_the_others(full: bool) -> None:
    unsafe, other = stretched(300, 3.0, 0), stretched(3000, 0.0, 1)
    direction, offset = whitened_direction(moments(unsafe, full), moments(other, full))
    scores = other.double() @ direction.double() + offset
    assert abs(float(scores.mean())) < 1e-4
    deviation = float(scores.std(correction=0))
    # With the diagonal alone the deviation is exact only for independent channels.
    assert deviation == pytest.approx(1, abs=1e-4 if full else 0.05)
    assert float((unsafe.double() @ direction.double() + offset).mean()) > 1


@pytest.mark.parametrize("full", [True, False])
def test_whitening_separates_better_than_the_difference_of_means(full: bool) -> None:
    train, test = [[stretched(1000, s, seed) for s, seed in ((2.5, i), (0.0, i + 1))] for i in (0, 2)]
    direction, _ = whitened_direction(*(moments(x, full) for x in train))
    raw = train[0].mean(0) - train[1].mean(0)

    def auroc(axis: torch.Tensor) -> float:
        truth = np.repeat([True, False], 1000)
        value = auroc_of((torch.cat(test) @ axis).numpy(), truth)
        assert value is not None
        return value

    assert auroc(direction) > 0.85
    assert auroc(direction) > auroc(raw) + 0.1


def test_a_constant_channel_does_no_harm() -> None:
    unsafe, other = torch.zeros(20, 4), torch.zeros(20, 4)
    unsafe[:, 0] = 1 + 0.1 * torch.randn(20, generator=torch.Generator().manual_seed(0))
    other[:, 0] = 0.1 * torch.randn(20, generator=torch.Generator().manual_seed(1))
    for full in (True, False):
        direction, offset = whitened_direction(moments(unsafe, full), moments(other, full))
        assert torch.isfinite(direction).all()
        assert np.isfinite(offset)


# ---------------------------------------------------------------------------------------------- figures


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=12))
def test_auroc_against_brute_force(pairs: list[tuple[int, bool]]) -> None:
    scores, truth = np.array([s for s, _ in pairs], np.float32), np.array([t for _, t in pairs])
    wins = [float(p > n) + 0.5 * float(p == n) for p in scores[truth] for n in scores[~truth]]
    expected = sum(wins) / len(wins) if wins else None
    assert auroc_of(scores, truth) == (None if expected is None else pytest.approx(expected))


def test_image_scores_are_the_nth_largest() -> None:
    scores = np.array([[[3.0, 1.0, 2.0], [5.0, 9.0, 7.0]]], np.float32)
    assert image_scores(scores, 1).tolist() == [[3.0, 9.0]]
    assert image_scores(scores, 2).tolist() == [[2.0, 7.0]]


def runs(scores: np.ndarray, masks: np.ndarray | None = None) -> ScoredRuns:
    return ScoredRuns({"p": scores.astype(np.float32)}, [1.0] * scores.shape[1], (1, scores.shape[2]), masks)


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
        choice = _choose("p", 0.0, last, runs(unsafe), runs(benign), budget, patches)

        def share(scores: np.ndarray, last: int = last, threshold: float = choice.threshold) -> float:
            hits = (scores[:, : last + 1].astype(np.float32) >= threshold).sum(-1)
            return float((hits >= patches).any(1).mean())

        assert share(benign) <= budget
        assert share(benign) == pytest.approx(choice.false_positive)
        assert share(unsafe) == pytest.approx(choice.recall)


def test_grow_maximises_f_half_over_patches() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((6, 1, 8)) < 0.4
    unsafe = (rng.normal(0, 1, (6, 2, 8)) + 2 * masks).astype(np.float32)
    choice = _choose("p", 0.0, 1, runs(unsafe, masks), runs(rng.normal(0, 1, (9, 2, 8))), 0.0, 1)
    truth = np.broadcast_to(masks, unsafe.shape)

    def f_half(threshold: float) -> float:
        hits = unsafe >= threshold
        precision, recall = (hits & truth).sum() / hits.sum(), (hits & truth).sum() / truth.sum()
        return float(1.25 * precision * recall / (0.25 * precision + recall))

    assert choice.grow < choice.threshold
    assert f_half(choice.grow) == pytest.approx(max(f_half(t) for t in unsafe.ravel()))
    assert choice.auroc == pytest.approx(auroc_of(unsafe.ravel(), truth.ravel()))


# ---------------------------------------------------------------------------------------------- generations


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_flux()


def drawn_masks(count: int) -> np.ndarray:
    masks = np.zeros((count, 8, 8), bool)
    for i in range(count):
        masks[i, 1 : 3 + i % 2, 2:5] = True
    return masks


@pytest.fixture(scope="module")
def bank(pipe: Any) -> uvr_core.ConceptBank:
    return collect(
        pipe, "weapon", prompts=UNSAFE, masks=drawn_masks(4), benign_prompts=BENIGN[:3], batch_size=3, generate=OPTIONS
    )


def test_a_collected_bank_fits_the_model_and_says_where_it_came_from(bank: uvr_core.ConceptBank, tmp_path: Any) -> None:
    assert bank.name == "weapon"
    assert bank.fingerprint == uvr_core.Fingerprint("FluxTransformer2DModel", 4, 2, 16)
    assert bank.probes == ("single_transformer_blocks.0.attn", "single_transformer_blocks.1.attn")
    assert len(bank.tensors["sigma"]) == 2
    assert bank.tensors["sigma"][0] == 1
    for probe in bank.probes:
        assert bank.tensor("direction", probe).shape == (2, 32)
        assert bank.tensor("offset", probe).shape == (2,)
        assert bank.tensor("anchors", probe).shape == (int(drawn_masks(4).sum()), 32)
        assert bank.tensor("token", probe).shape == (2, 32)
    assert bank.calibration is None
    assert bank.provenance["images_with_concept"] == 4
    assert bank.provenance["benign_prompts"] == 3
    assert bank.provenance["generate"] == OPTIONS
    back = load_concepts(bank.save(tmp_path / "x.safetensors"))
    assert all(torch.equal(back.tensors[k], v) for k, v in bank.tensors.items())
    assert back.provenance == bank.provenance


def test_masks_from_a_callable_equal_masks_from_an_array(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    done = [0]

    def masks(images: Any, grid: tuple[int, int]) -> np.ndarray:
        assert grid == (8, 8)
        start, done[0] = done[0], done[0] + len(images)
        return drawn_masks(4)[start : done[0]]

    other = collect(
        pipe, "weapon", prompts=UNSAFE, masks=masks, benign_prompts=BENIGN[:3], batch_size=3, generate=OPTIONS
    )
    assert other.tensors.keys() == bank.tensors.keys()
    assert all(torch.equal(other.tensors[k], v) for k, v in bank.tensors.items())


def test_benign_prompts_change_the_direction_and_not_the_anchors(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    without = collect(pipe, "weapon", prompts=UNSAFE, masks=drawn_masks(4), batch_size=3, generate=OPTIONS)
    probe = bank.probes[0]
    assert torch.equal(without.tensor("anchors", probe), bank.tensor("anchors", probe))
    assert not torch.allclose(without.tensor("direction", probe), bank.tensor("direction", probe), rtol=1e-3)


def test_anchors_are_the_attention_outputs_under_the_mask(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    seen: list[torch.Tensor] = []
    probe = bank.probes[1]
    with uvr_core.attach(pipe) as reg, reg.recording(lambda path, step, sigma, x: seen.append(x), [probe]):
        for start, prompts in ((0, UNSAFE[:3]), (3, UNSAFE[3:])):
            generators = [torch.Generator().manual_seed(start + i) for i in range(len(prompts))]
            pipe(prompts, generator=generators, **OPTIONS)
    last = torch.cat([seen[1], seen[3]])  # the last of two steps, both batches
    expected = last[torch.from_numpy(drawn_masks(4).reshape(4, 64))]
    np.testing.assert_allclose(bank.tensor("anchors", probe), expected, atol=2e-3)  # they pass through float16


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), sharpness=st.sampled_from([0.3, 3.0]), masked=st.booleans())
def test_the_feeding_tokens_are_those_of_the_flow_contrast(seed: int, sharpness: float, masked: bool) -> None:
    """Chosen from the patches' attention to text alone, they are what flow_contrast says of the whole call."""
    text, patches = 6, 12
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, 2, text + patches, 8, generator=generator) * sharpness for _ in range(2))
    mask = torch.ones(1, 1, 1, text + patches, dtype=torch.bool)
    mask[..., 1] = not masked
    inside = torch.rand(patches, generator=generator) < 0.4
    inside[0], inside[1] = True, False
    rows = torch.randn(text, 16, generator=generator)
    tokens = torch.arange(text + patches) < text
    weight = mass_on(q[:, :, text:], k, torch.eye(text + patches)[:, :text], attn_mask=mask).mean(1)[0]
    found = feeding_rows(rows, weight, inside.numpy(), (~inside).numpy())

    def on_rows(side: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros(text, dtype=torch.bool), side])[None]

    contrast = flow_contrast(q, k, on_rows(inside), on_rows(~inside), tokens[None], attn_mask=mask)[0, :text]
    chosen = contrast > 2.5
    chosen[contrast.argmax()] = True
    assert found is not None
    np.testing.assert_allclose(found, rows[chosen].mean(0), atol=1e-5)
    assert not (masked and chosen[1])


def test_there_is_no_feeding_token_without_text_or_patches_to_compare() -> None:
    some, nobody = np.array([True, False]), np.zeros(2, bool)
    assert feeding_rows(torch.zeros(0, 4), torch.zeros(2, 0), some, ~some) is None
    assert feeding_rows(torch.ones(3, 4), torch.ones(2, 3), some, nobody) is None
    assert feeding_rows(torch.ones(3, 4), torch.ones(2, 3), nobody, some) is None


def test_tokens_are_the_attention_outputs_at_the_text_that_feeds_the_region(
    pipe: Any, bank: uvr_core.ConceptBank
) -> None:
    """By hand, with the attention matrix, from the calls as the model makes them."""
    calls: list[AttentionCall] = []
    with uvr_core.attach(pipe) as reg:
        seam = reg._seam
        seam.observer = lambda call, stock=seam.observer: (calls.append(call), stock(call))[1]
        for path, module in seam.taps.items():
            module.processor = seam._originals.pop(path)
            seam._seat(path, module)
        for start, prompts in ((0, UNSAFE[:3]), (3, UNSAFE[3:])):
            generators = [torch.Generator().manual_seed(start + i) for i in range(len(prompts))]
            pipe(prompts, generator=generators, **OPTIONS)
    for probe in bank.probes:
        own = [call for call in calls if call.path == probe]  # 2 batches x 2 steps
        for step in range(2):
            means = []
            for batch, start in ((0, 0), (1, 3)):
                call = own[2 * batch + step]
                weight = (call.query.double() @ call.key.double().mT * 16**-0.5).softmax(-1).mean(1)
                for sample in range(len(call.query)):
                    mask = drawn_masks(4)[start + sample]
                    outside = ~(mask | ring_of(mask))
                    text = weight[sample, -64:, :-64]
                    contrast = text[mask.reshape(-1)].mean(0) / text[outside.reshape(-1)].mean(0)
                    chosen = contrast > 2.5
                    chosen[contrast.argmax()] = True
                    means.append(call.output[sample, :, :-64].transpose(0, 1).flatten(1)[chosen].mean(0))
            assert len(means) == 4
            np.testing.assert_allclose(bank.tensor("token", probe)[step], torch.stack(means).mean(0), atol=1e-5)


def test_recording_the_text_changes_nothing_else(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    probe, seen, text = bank.probes[0], [], []
    with uvr_core.attach(pipe) as reg:
        for recorder in (None, lambda path, step, rows, mass: text.append((path, step, rows.shape, mass))):
            with reg.recording(lambda path, step, sigma, x: seen.append(x), [probe], recorder):
                images = pipe("a cat", generator=torch.Generator().manual_seed(0), output_type="np", **OPTIONS).images
                seen.append(torch.from_numpy(images))
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))
    assert [(path, step) for path, step, _, _ in text] == [(probe, 0), (probe, 1)]
    assert text[0][2] == (1, 32, 32)
    for _, _, _, mass in text:
        assert mass.shape == (1, 64, 32)
        assert (mass >= 0).all()
        assert (mass.sum(-1) < 1).all()


def test_a_collected_token_locates(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    tuned = calibrate(pipe, bank, UNSAFE, BENIGN, 0.34, detector="concept-token", batch_size=10, generate=OPTIONS)
    assert tuned.calibration is not None
    assert tuned.calibration.detector == "concept-token"
    with uvr_core.attach(pipe, concepts=tuned, policy="observe") as reg:
        pipe(UNSAFE[:2], generator=[torch.Generator().manual_seed(i) for i in range(2)], **OPTIONS)
        assert all(-2 <= f.score <= 2 for f in reg.report.findings)
        assert {f.detector for f in reg.report.findings} == {"concept-token"}


def test_an_image_without_the_concept_is_left_out(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    masks = drawn_masks(4)
    masks[1:] = False
    one = collect(pipe, "weapon", prompts=UNSAFE, masks=masks, batch_size=3, generate=OPTIONS, max_anchors=4)
    probe = bank.probes[0]
    assert one.provenance["images_with_concept"] == 1
    anchors = one.tensor("anchors", probe)
    assert anchors.shape == (4, 32)  # thinned out from six
    assert all((bank.tensor("anchors", probe)[:6] == row).all(1).any() for row in anchors)


def test_what_cannot_be_collected_is_refused(pipe: Any) -> None:
    empty = np.zeros((1, 8, 8), bool)
    with pytest.raises(UVRError, match="collect 'weapon': none of the 1 generated images shows the concept"):
        collect(pipe, "weapon", prompts=UNSAFE[:1], masks=empty, generate=OPTIONS)
    with pytest.raises(UVRError, match="prompts: no prompts given"):
        collect(pipe, "weapon", prompts=["", " "], masks=empty, generate=OPTIONS)
    assert not hasattr(type(pipe.transformer.transformer_blocks[0].attn.processor), "_uvr_seam"), "still attached"


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


def test_scores_do_not_depend_on_the_batch_size(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    one, three = (score_runs(pipe, bank, UNSAFE[:3], batch_size=n, generate=OPTIONS) for n in (1, 3))
    for probe in bank.probes:
        assert one.scores[probe].shape == (3, 2, 64)
        np.testing.assert_allclose(one.scores[probe], three.scores[probe], atol=0.05)


def test_collecting_leaves_the_pipeline_as_it_was() -> None:
    runner = Runner()
    stock = runner.run()
    collect(runner.pipe, "x", prompts=UNSAFE[:1], masks=drawn_masks(1), generate=OPTIONS)
    assert np.array_equal(runner.run(), stock)


def test_array_masks_are_read_batch_by_batch(runner: Runner) -> None:
    masks = np.zeros((4, 8, 8), bool)
    for index in range(4):
        masks[index, index] = True
    bank = make_bank()
    runs = score_runs(
        runner.pipe, bank, ["a cat"] * 4, masks=masks, batch_size=2,
        generate={"height": 64, "width": 64, "num_inference_steps": 2},
    )  # fmt: skip
    assert np.array_equal(runs.masks, masks)
    with pytest.raises(UVRError, match=r"masks: expected \(2, 8, 8\)"):
        score_runs(
            runner.pipe, bank, ["a cat"] * 4, masks=masks[:3], batch_size=2,
            generate={"height": 64, "width": 64, "num_inference_steps": 2},
        )  # fmt: skip
