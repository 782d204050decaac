"""The built-in detectors and policies against their equations, computed here by hand in float64."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import torch
from driven import Driven, plan_of
from runner import PROBE, make_bank
from scipy import ndimage
from torch import Tensor

from uvr_core import ConceptBank, ConceptMismatch, UnsafeContent, UVRError
from uvr_core.adapter import Layout
from uvr_core.engine import reweight
from uvr_core.engine.plan import ConceptPlan
from uvr_core.engine.withhold import Refusal
from uvr_core.intercept.calls import AttentionCall
from uvr_core.ops.noise import matched_noise
from uvr_core.ops.rows import rows_of, take_rows
from uvr_core.protocols import (
    CallInfo,
    ColumnScale,
    ColumnWeights,
    Detector,
    Direction,
    FlowEdit,
    KeyWeights,
    Located,
    MaskOptions,
    NoiseBlend,
    Policy,
    PolicyTraits,
    Reweight,
    RowClass,
    row_classes,
)
from uvr_plugins.detectors import Anchor, AnchorCosine, ConceptToken, Contrast, Oracle
from uvr_plugins.policies import Block, Noise, Observe, Project, Redirect, Refuse, Selective, Uvr, UvrReleased

# ---------------------------------------------------------------------------------------------- detectors


@pytest.fixture(scope="module")
def features() -> Tensor:
    return torch.randn(3, 20, 32, generator=torch.Generator().manual_seed(3)) * 4


@pytest.fixture
def bank() -> ConceptBank:  # bins 1.0, 0.8, 0.5; 5 anchors of width 32
    bank = make_bank()
    bank.tensors[f"offset/{PROBE}"] = torch.tensor([0.5, -2.0, 7.0])
    bank.tensors[f"token/{PROBE}"] = torch.randn(3, 32, generator=torch.Generator().manual_seed(4))
    return bank


def test_anchor_is_the_mean_dot_product_over_the_width(features: Tensor, bank: ConceptBank) -> None:
    anchors = bank.tensor("anchors", PROBE).double().numpy()
    o = features.double().numpy()
    expected = np.mean([o @ a for a in anchors], axis=0) / 32
    np.testing.assert_allclose(Anchor().scores(features, 0.9, bank, PROBE), expected, atol=1e-5)


def test_anchor_cosine_is_the_angle_to_the_mean_anchor(features: Tensor, bank: ConceptBank) -> None:
    mean = bank.tensor("anchors", PROBE).double().numpy().mean(0)
    o = features.double().numpy()
    expected = o @ mean / (np.linalg.norm(o, axis=-1) * np.linalg.norm(mean))
    scores = AnchorCosine().scores(features, 0.9, bank, PROBE)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_allclose(AnchorCosine().scores(features * 7, 0.9, bank, PROBE), scores, atol=1e-5)


@pytest.mark.parametrize(("sigma", "index"), [(1.0, 0), (0.91, 0), (0.89, 1), (0.64, 2), (0.0, 2)])
def test_contrast_uses_the_nearest_noise_level(features: Tensor, bank: ConceptBank, sigma: float, index: int) -> None:
    direction = bank.tensor("direction", PROBE)[index].double().numpy()
    expected = features.double().numpy() @ direction + (0.5, -2.0, 7.0)[index]
    np.testing.assert_allclose(Contrast().scores(features, sigma, bank, PROBE), expected, atol=1e-4)


@pytest.mark.parametrize(("sigma", "index"), [(1.0, 0), (0.91, 0), (0.89, 1), (0.64, 2), (0.0, 2)])
def test_concept_token_is_the_cosine_above_the_pictures_mean(
    features: Tensor, bank: ConceptBank, sigma: float, index: int
) -> None:
    token, o = bank.tensor("token", PROBE)[index].double().numpy(), features.double().numpy()
    cosine = o @ token / (np.linalg.norm(o, axis=-1) * np.linalg.norm(token))
    expected = cosine - cosine.mean(-1, keepdims=True)
    scores = ConceptToken().scores(features, sigma, bank, PROBE)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    with_reference = torch.cat([features, features.flip(1)], -1)  # editing: the facing token plays no part
    np.testing.assert_allclose(ConceptToken().scores(with_reference, sigma, bank, PROBE), expected, atol=1e-5)


def test_concept_token_says_so_when_the_bank_has_no_token(features: Tensor) -> None:
    with pytest.raises(ConceptMismatch, match=r"concept 'x' has no text token for probe .*collect it again"):
        ConceptToken().scores(features, 0.9, make_bank(), PROBE)


@pytest.mark.parametrize("detector", [Anchor(), AnchorCosine(), Contrast(), ConceptToken()])
def test_scores_are_float32_per_sample_and_take_half_precision(
    features: Tensor, bank: ConceptBank, detector: Detector
) -> None:
    scores = detector.scores(features, 0.7, bank, PROBE)
    assert scores.shape == (3, 20)
    assert scores.dtype == torch.float32
    alone = detector.scores(features[1:2], 0.7, bank, PROBE)
    np.testing.assert_allclose(alone[0], scores[1], atol=1e-5)
    half = attrs.evolve(bank, tensors={k: v.half() for k, v in bank.tensors.items()})
    np.testing.assert_allclose(detector.scores(features, 0.7, half, PROBE), scores, atol=0.05)


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 20)])
def test_oracle_gives_back_its_masks(features: Tensor, bank: ConceptBank, shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.5
    scores = Oracle(mask).scores(features, 0.9, bank, PROBE)
    assert torch.equal(scores, torch.where(torch.from_numpy(mask).reshape(3, 20), torch.inf, -torch.inf))
    assert not torch.isnan(scores).any()


@pytest.mark.parametrize("masks", [np.zeros((2, 20), bool), np.zeros((3, 19), bool), np.zeros((3, 4, 4), bool)])
def test_oracle_refuses_masks_of_another_shape(features: Tensor, bank: ConceptBank, masks: np.ndarray) -> None:
    with pytest.raises(UVRError, match=r"expected \(3, 20\) \(images, patches\), got"):
        Oracle(masks).scores(features, 0.9, bank, PROBE)


def test_oracle_without_masks_says_what_it_needs(features: Tensor, bank: ConceptBank) -> None:
    with pytest.raises(UVRError, match="needs its masks"):
        Oracle().scores(features, 0.9, bank, PROBE)


# ---------------------------------------------------------------------------------------------- policies: the edit


def located(sigma: float = 0.9) -> Located:
    core = torch.tensor([[True, False, True, False]])
    ring = torch.tensor([[True, True, False, False]])  # overlaps the core, which wins
    return Located(core, ring, (2, 2), sigma, 0)


def info(contrast: Tensor | None = None, source: Tensor | None = None, reference: int = 1) -> CallInfo:
    def unwanted() -> Tensor:
        raise AssertionError("the contrast was computed for a policy that does not need it")

    return CallInfo(
        "x", 3, reference, unwanted if contrast is None else lambda: contrast,
        unwanted if source is None else lambda: source,
    )  # fmt: skip


STOCK, CORE, RING = RowClass
CLASSES = [[CORE, RING, CORE, STOCK]]
CUSTOM = Uvr(strong=0.1, mild=0.5, boost=1.25, alpha=0.3, startup=0.8, until=0.2)


def test_uvr_weakens_what_is_not_output_and_boosts_safe_output() -> None:
    edit = CUSTOM.edit(located(), info())
    assert edit is not None
    assert edit.rows.tolist() == CLASSES
    assert edit.reweight is not None
    assert (edit.reweight.core, edit.reweight.ring) == (KeyWeights(0.1, 1.25, 1, 0.1), KeyWeights(0.5, 1.25, 1, 0.5))
    assert edit.reweight.text_factor is None
    assert edit.noise == NoiseBlend(core=0.3, kind="matched")


@pytest.mark.parametrize(("sigma", "alpha"), [(1.0, 0.3), (0.8, 0.3), (0.79, 0.0), (0.2, 0.0), (0.19, None)])
def test_uvr_mixes_noise_at_startup_only_and_stops_at_until(sigma: float, alpha: float | None) -> None:
    edit = CUSTOM.edit(located(sigma), info())
    assert (edit is None) == (alpha is None)
    if edit is not None:
        assert edit.noise == (NoiseBlend(core=alpha) if alpha else None)


@pytest.mark.parametrize(("sigma", "acts"), [(1.0, True), (0.85, True), (0.849, False), (0.1, False)])
def test_uvr_released_replaces_core_rows_within_startup_only(sigma: float, acts: bool) -> None:
    edit = UvrReleased().edit(located(sigma), info(reference=0))
    assert (edit is not None) == acts
    if edit is not None:
        assert edit.noise is not None
        assert (edit.noise.core, edit.noise.ring) == pytest.approx((0.999, 0.0))
        assert edit.noise.kind == "unit"
        assert edit.reweight is None


def test_uvr_released_scales_columns_when_there_is_a_source() -> None:
    edit = UvrReleased().edit(located(0.9), info())
    assert edit is not None
    assert edit.columns == ColumnScale(ColumnWeights(1, 1, 1, 0.2, 0.4), ColumnWeights(1.05, 1.05, 1, 0.2, 0.4))
    assert edit.noise is None
    assert UvrReleased().edit(located(0.8), info()) is None


def test_block_cuts_text_and_reference_from_core_and_ring() -> None:
    edit = Block().edit(located(0.0), info())
    assert edit is not None
    assert edit.rows.tolist() == CLASSES
    assert edit.reweight is not None
    assert edit.reweight.core == edit.reweight.ring == KeyWeights(0, 1, 1, 0)
    assert edit.noise is None


def test_selective_scales_only_the_tokens_that_feed_the_located_rows() -> None:
    policy = Selective(strong=0.25, contrast=2.0, instruction_contrast=0.4, source_contrast=1.5, until=0.3)
    contrast = torch.tensor([[0.4, 2.0, 2.1]])
    edit = policy.edit(located(), info(contrast, reference=0))
    assert edit is not None
    assert edit.reweight is not None
    assert edit.reweight.text_factor is not None
    assert edit.reweight.text_factor.tolist() == [[1.0, 1.0, 0.25]]
    assert edit.reweight.reference_factor is None
    assert edit.reweight.core.neutral
    for shown, words, source in ((True, [1.0, 1.0, 0.25], [0.25, 1.0]), (False, [1.0, 0.25, 0.25], [1.0, 1.0])):
        found = attrs.evolve(located(), from_source=torch.tensor([shown]))
        edit = policy.edit(found, info(contrast, torch.tensor([[1.6, 1.5]]), reference=2))
        assert edit is not None
        assert edit.reweight is not None
        assert edit.reweight.text_factor is not None
        assert edit.reweight.reference_factor is not None
        assert edit.reweight.text_factor.tolist() == [words]
        assert edit.reweight.reference_factor.tolist() == [source]
    assert policy.edit(located(0.29), info()) is None


@pytest.mark.parametrize(("sigma", "acts"), [(1.0, True), (0.7, True), (0.699, False), (0.0, False)])
def test_noise_replaces_core_rows_within_startup_only(sigma: float, acts: bool) -> None:
    edit = Noise(0.4, "unit", 0.7).edit(located(sigma), info())
    assert (edit is not None) == acts
    if edit is not None:
        assert edit.rows.tolist() == CLASSES
        assert edit.noise == NoiseBlend(core=0.4, kind="unit")
        assert edit.reweight is None
    assert (Noise().alpha, Noise().noise, Noise().startup, Noise().ring) == (0.999, "matched", 0.85, 0)


def test_project_hands_on_the_direction_or_does_nothing() -> None:
    assert Project().edit(located(), info()) is None
    direction = Direction(torch.ones(8), torch.zeros(1, 4))
    edit = Project(0.75).edit(located(0.0), attrs.evolve(info(), direction=lambda: direction))
    assert edit is not None
    assert edit.projection is not None
    assert edit.rows.tolist() == CLASSES
    assert edit.projection.vector is direction.vector
    assert edit.projection.offset is direction.offset
    assert (edit.projection.core, edit.projection.ring) == (0.75, 0.75)


def test_redirect_asks_for_the_unconditional_text() -> None:
    edit = Redirect().edit(located(0.0), info())
    assert edit is not None
    assert edit.rows.tolist() == CLASSES
    assert edit.reweight is not None
    assert edit.reweight.text == "uncond"
    assert edit.reweight.core.neutral
    assert Redirect.needs_uncond
    with pytest.raises(UVRError, match="text_factor is for a row's own text tokens"):
        attrs.evolve(edit.reweight, text_factor=torch.ones(1, 3))


def test_refuse_names_concept_images_and_step() -> None:
    core = torch.tensor([[True, False], [False, False], [False, True]])
    found = Located(core, torch.zeros_like(core), (1, 2), 0.5, 4, concept="weapon")
    with pytest.raises(UnsafeContent, match=r"'weapon' was located in images 0, 2 .*step 4") as caught:
        Refuse().edit(found, info())
    assert (caught.value.concept, caught.value.samples, caught.value.step) == ("weapon", (0, 2), 4)


def test_refuse_hands_on_what_is_located_later() -> None:
    policy = Refuse(steps=4, then=Uvr(ring=2, margin=1))
    assert policy.masks == MaskOptions(ring=2, margin=1)
    assert Refuse(steps=1, then=Redirect()).needs_uncond
    assert PolicyTraits.of(Refuse()) == PolicyTraits()
    early, late = (attrs.evolve(located(), step=step) for step in (3, 4))
    with pytest.raises(UnsafeContent):
        policy.edit(early, info())
    edit, want = policy.edit(late, info()), Uvr(ring=2, margin=1).edit(late, info())
    assert edit is not None
    assert want is not None
    assert edit.rows.tolist() == want.rows.tolist()
    assert edit.reweight is not None
    assert want.reweight is not None
    assert (edit.reweight.core, edit.reweight.ring) == (want.reweight.core, want.reweight.ring)


@pytest.mark.parametrize("options", [{"steps": 3}, {"then": Uvr()}])
def test_refuse_leaves_nothing_unregulated(options: dict[str, Any]) -> None:
    with pytest.raises(UVRError, match="give steps and then together"):
        Refuse(**options)


def test_refuse_asks_for_a_policy_and_not_its_name() -> None:
    with pytest.raises(TypeError, match=r"'then' must be .*Policy"):
        Refuse(steps=1, then="selective")  # type: ignore[arg-type]


def test_observe_changes_nothing() -> None:
    assert Observe().edit(located(), info()) is None
    assert not PolicyTraits.of(Observe()).acts


@pytest.mark.parametrize(
    ("policy", "options"),
    [(Uvr, {"strong": -0.1}), (Uvr, {"mild": 1.1}), (Uvr, {"boost": 0.9}), (Uvr, {"alpha": 2.0}),
     (UvrReleased, {"keep": -1.0}), (Noise, {"alpha": 1.5}), (Noise, {"noise": "loud"}), (Noise, {"startup": -1.0}),
     (Project, {"strength": -0.1}), (Selective, {"strong": 2.0}), (Selective, {"contrast": 0.0}),
     (Refuse, {"steps": 0})],
)  # fmt: skip
def test_values_out_of_range_are_refused(policy: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        policy(**options)


# ---------------------------------------------------------------------------------------------- policies: the flow

GRID, TEXT, REFERENCE = (4, 5), 3, 6
PATCHES = GRID[0] * GRID[1]
KEYS = TEXT + PATCHES + REFERENCE


def spans(image_at: str, output_first: bool) -> tuple[slice, slice, slice]:
    """Text, output and reference tokens on the token axis."""
    start = TEXT if image_at == "end" else 0
    text = slice(0, TEXT) if image_at == "end" else slice(KEYS - TEXT, KEYS)
    if output_first:
        return text, slice(start, start + PATCHES), slice(start + PATCHES, start + PATCHES + REFERENCE)
    return text, slice(start + REFERENCE, start + REFERENCE + PATCHES), slice(start, start + REFERENCE)


def masks() -> np.ndarray:
    found = np.zeros((3, *GRID), bool)
    found[0, 1:3, 1:3] = True
    found[2, 0, 0:2] = True
    return found


def flow(
    policy: Any, image_at: str = "end", output_first: bool = True, sigma: float = 0.9, bank: ConceptBank | None = None,
    references: tuple[tuple[int, int], ...] = (),
) -> tuple[Tensor, ...]:  # fmt: skip
    """One attention call through a session: (q, k, v, stock output, edited output), all (3, 2 heads, tokens, 8)."""
    generator = torch.Generator().manual_seed(11)
    q, k, v = (torch.randn(3, 2, KEYS, 8, generator=generator) * 2 for _ in range(3))
    stock = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    session = Driven([rule(policy, bank)], image_at, output_first, seeds=(4, 5, 6))
    layout = Layout(PATCHES + REFERENCE, PATCHES, GRID, references)
    edited = forward(session, AttentionCall("a", q, k, v, stock, None, None), sigma, layout)
    return q, k, v, stock, stock if edited is None else edited


def rule(policy: Any, bank: ConceptBank | None = None, where: np.ndarray | None = None) -> ConceptPlan:
    """A plan that locates the given masks in block "a"."""
    return plan_of(bank or make_bank(), Oracle(masks() if where is None else where), policy)


def forward(session: Driven, call: AttentionCall, sigma: float, layout: Layout) -> Tensor | None:
    """One forward of a model whose only block is "a"."""
    return session.forward(call, sigma, layout)


def classes(policy: Any) -> Tensor:
    """(3, PATCHES): CORE within `margin` of the mask, RING within `ring` beyond, else STOCK."""
    result = np.zeros((3, *GRID), int)
    for sample, mask in enumerate(masks()):
        square = np.ones((3, 3), bool)
        core = ndimage.binary_dilation(mask, square, policy.margin) if policy.margin else mask
        wide = ndimage.binary_dilation(core, square, policy.ring) if policy.ring else core
        result[sample] = np.where(core, CORE, np.where(wide, RING, STOCK))
    return torch.from_numpy(result.reshape(3, PATCHES))


def restricted(q: Tensor, k: Tensor, v: Tensor, factor: Tensor) -> Tensor:
    """Attention whose weights are multiplied by factor (B, queries, keys) and normalised again, in float64."""
    weight = (q.double() @ k.double().mT * q.shape[-1] ** -0.5).softmax(-1) * factor[:, None].double()
    return weight / weight.sum(-1, keepdim=True) @ v.double()


LAYOUTS = [(image_at, first) for image_at in ("start", "end") for first in (True, False)]


@pytest.mark.parametrize(("image_at", "output_first"), LAYOUTS)
@pytest.mark.parametrize(
    "policy",
    [Uvr(0.1, 0.5, 1.25), Uvr(0.0, 0.4, 1.0, margin=1), Uvr(ring=0), Uvr(0.2, 0.6, ring=2), Block(), Block(ring=0)],
    ids=lambda p: f"{p.name}-ring{p.ring}-margin{p.margin}",
)
def test_what_flows_is_the_policys_table(policy: Any, image_at: str, output_first: bool) -> None:
    q, k, v, stock, edited = flow(policy, image_at, output_first)
    text, output, reference = spans(image_at, output_first)
    kind = classes(policy)
    factor = torch.ones(3, KEYS, KEYS)
    for sample in range(3):
        for patch in range(PATCHES):
            if kind[sample, patch] == STOCK:
                continue
            row = factor[sample, output.start + patch]
            if isinstance(policy, Uvr):
                row[text] = row[reference] = policy.strong if kind[sample, patch] == CORE else policy.mild
                row[output] = torch.where(kind[sample] == STOCK, policy.boost, 1.0)
            else:
                row[text] = row[reference] = 0.0
    expected = restricted(q, k, v, factor)
    assert (edited.double() - expected).abs().max() < 5e-6
    rows = torch.zeros(3, KEYS, dtype=torch.bool)
    rows[:, output] = kind != STOCK
    assert torch.equal((edited != stock).any(-1).any(1), rows), "other rows must stay bitwise stock, these must change"


@attrs.frozen
class Told(Selective):
    """Selective that is told where each of the three samples' concepts comes from."""

    from_source: tuple[bool, ...] = (True, True, True)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        return Selective.edit(self, attrs.evolve(located, from_source=torch.tensor(self.from_source)), call)


@pytest.mark.parametrize("told", [None, (True, True, False), (False, True, False)])
@pytest.mark.parametrize(("image_at", "output_first"), LAYOUTS)
def test_selective_follows_the_flow_contrast(image_at: str, output_first: bool, told: tuple[bool, ...] | None) -> None:
    bars = {"contrast": 1.1, "instruction_contrast": 1.0, "source_contrast": 1.0}
    options = {"strong": 0.1, "amplification": 0.3, **bars}
    policy = Selective(**options) if told is None else Told(**options, from_source=told)
    q, k, v, _, edited = flow(policy, image_at, output_first)
    text, output, reference = spans(image_at, output_first)
    kind = classes(policy)
    weight = (q.double() @ k.double().mT * 8**-0.5).softmax(-1).mean(1)[:, output]  # (B, N, keys)
    factor = torch.ones(3, KEYS, KEYS)
    chosen_any = False
    for sample in (0, 2):
        core, rest = kind[sample] == CORE, kind[sample] == STOCK
        contrast = weight[sample][core].mean(0) / weight[sample][rest].mean(0)
        line = torch.ones(KEYS)
        shown = told is None or told[sample]
        restricted_rows = kind[sample] != STOCK if shown else core
        for keys in (text, reference) if shown else (text,):
            bar = bars["source_contrast" if keys is reference else "contrast" if shown else "instruction_contrast"]
            line[keys] = torch.where(contrast[keys] > bar, policy.strong, 1.0).float()
        line[output] = torch.where(restricted_rows, policy.amplification, 1.0)
        factor[sample, output] = torch.where(restricted_rows[:, None], line, torch.ones(KEYS))
        chosen_any |= bool((contrast[text] > 1.1).any()) and bool((contrast[text] <= 1.0).any())
    assert chosen_any, "the example must have both kinds of token"
    assert (edited.double() - restricted(q, k, v, factor)).abs().max() < 5e-6


class Synthesis(UvrReleased):
    """UvrReleased as on a model without reference tokens."""

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        return UvrReleased.edit(self, located, attrs.evolve(call, reference=0))


def test_released_rows_are_unit_noise_with_a_trace_of_the_output() -> None:
    _, _, _, stock, edited = flow(Synthesis(keep=0.5))
    _, output, _ = spans("end", True)
    kind = classes(attrs.evolve(Block(), ring=0))
    rows = torch.zeros(3, KEYS, dtype=torch.bool)
    rows[:, output] = kind == CORE
    assert torch.equal((edited != stock).any(-1).any(1), rows)
    noise = ((edited - 0.5 * stock) / 0.5).transpose(1, 2)[rows]  # (rows, heads, 8)
    assert abs(float(noise.mean())) < 0.3
    assert abs(float(noise.std()) - 1) < 0.25
    assert torch.equal(flow(Synthesis(keep=0.5))[-1], edited), "the noise is seeded"
    assert torch.equal(flow(Synthesis(), sigma=0.5)[-1], stock)


def test_uvr_noise_goes_to_core_rows_at_startup() -> None:
    _, output, _ = spans("end", True)
    quiet, noisy = Uvr(ring=1, margin=0), Uvr(ring=1, margin=0, alpha=0.5, startup=0.85)
    different = (flow(noisy)[-1] != flow(quiet)[-1]).any(-1).any(1)
    assert torch.equal(different[:, output], classes(quiet) == CORE)
    assert torch.equal(flow(noisy, sigma=0.5)[-1], flow(quiet, sigma=0.5)[-1])


@pytest.mark.parametrize("noise", ["matched", "unit"])
def test_noise_blends_core_rows_with_seeded_noise(noise: Any) -> None:
    policy = Noise(0.75, noise)
    _, _, _, stock, edited = flow(policy)
    _, output, _ = spans("end", True)
    full = torch.zeros(3, KEYS, dtype=torch.bool)
    full[:, output] = torch.from_numpy(masks().reshape(3, PATCHES))
    assert torch.equal((edited != stock).any(-1).any(1), full), "core rows and no others"
    rows = rows_of(full)
    old, new = take_rows(stock, rows), take_rows(edited, rows)
    generators = Driven([], seeds=(4, 5, 6)).regulation._generators(3)
    stats: dict[str, Any] = {} if noise == "matched" else {"mean": 0.0, "std": 1.0}
    expected = 0.25 * old.double() + 0.75 * matched_noise(old, rows, generators, **stats).double()
    for sample, count in enumerate(rows.counts):
        torch.testing.assert_close(new[sample, :, :count].double(), expected[sample, :, :count], rtol=0, atol=1e-6)
    assert torch.equal(flow(policy, sigma=0.5)[-1], stock)


def probe_bank(kind: str) -> ConceptBank:
    """A bank for block "a" of 2 heads x 8: a direction of width C or 2C, anchors alone, or nothing for that block."""
    generator = torch.Generator().manual_seed(13)
    tensors = {"sigma": torch.tensor([1.0, 0.8]), "anchors/b": torch.randn(3, 16, generator=generator)}
    if kind != "elsewhere":
        tensors["anchors/a"] = torch.randn(3, 16, generator=generator)
    if kind in ("C", "2C"):
        tensors["direction/a"] = torch.randn(2, 16 if kind == "C" else 32, generator=generator)
        tensors["offset/a"] = torch.tensor([0.3, -0.4])
    return attrs.evolve(make_bank(), tensors=tensors)


@pytest.mark.parametrize(("image_at", "output_first"), LAYOUTS)
@pytest.mark.parametrize("kind", ["C", "2C", "anchor"])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_project_takes_away_a_share_of_the_score(kind: str, image_at: str, output_first: bool, strength: float) -> None:
    policy, bank = Project(strength), probe_bank(kind)
    _, _, _, stock, edited = flow(policy, image_at, output_first, 0.85, bank, references=((2, 3),))  # second bin
    _, output, reference = spans(image_at, output_first)
    before, after = (x.double().transpose(1, 2).flatten(2).numpy() for x in (stock, edited))
    if kind == "anchor":
        direction, offset = bank.tensor("anchors", "a").double().mean(0).numpy(), 0.0
    else:
        direction, offset = bank.tensor("direction", "a")[1].double().numpy(), -0.4
    facing = [((2 * row + 1) * 2 // 8) * 3 + (2 * column + 1) * 3 // 10 for row in range(4) for column in range(5)]
    score = before[:, output] @ direction[:16] + offset
    if kind == "2C":
        score = score + before[:, reference][:, facing] @ direction[16:]
    kept = (classes(policy) == STOCK).numpy() | (score <= 0)
    assert (kept & (classes(policy) != STOCK).numpy()).any(), "the example must have located rows of both signs"
    share = np.where(kept, 0.0, strength * score / (direction[:16] @ direction[:16]))
    expected = before[:, output] - share[..., None] * direction[:16]
    np.testing.assert_allclose(after[:, output], expected, atol=2e-6)
    changed = np.zeros((3, KEYS), bool)
    changed[:, output] = ~kept
    assert np.array_equal((edited != stock).any(-1).any(1).numpy(), changed), "all others stay bitwise stock"


def test_project_leaves_blocks_that_the_bank_does_not_know() -> None:
    *_, stock, edited = flow(Project(), bank=probe_bank("elsewhere"))
    assert edited is stock


def test_project_needs_the_source_that_the_bank_was_collected_with() -> None:
    with pytest.raises(ConceptMismatch, match="collected with source images and this call has none"):
        flow(Project(), bank=probe_bank("2C"))


def text_call(seed: int, text: int, image_at: str, batch: int = 3, masked: str = "none") -> AttentionCall:
    """A call with `text` text tokens; masked: hides some of them per sample ("keys"), or per query as well ("full")."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, 2, text + PATCHES + REFERENCE, 8, generator=generator) for _ in range(3))
    mask = None
    if masked != "none":
        shape = (batch, 1, 1 if masked == "keys" else q.shape[2], q.shape[2])
        mask = torch.rand(shape, generator=generator) > 0.3
        image = slice(0, -text) if image_at == "start" else slice(text, None)
        mask[..., image] = True if masked == "keys" else mask[..., image]
        mask[..., text if image_at == "end" else 0] = True
    output = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    return AttentionCall("a", q, k, v, output, mask, None)


def joined(call: AttentionCall, other: AttentionCall | None, image_at: str) -> tuple[Tensor, Tensor, Tensor]:
    """By hand: keys, values and additive mask (B, 1, N, keys) of the output rows, text first."""
    image = PATCHES + REFERENCE
    parts = []
    for source, of_text in ((other, True), (call, False)):
        if source is None:
            continue
        total = source.key.shape[2]
        text = slice(image, total) if image_at == "start" else slice(0, total - image)
        rest = slice(0, image) if image_at == "start" else slice(total - image, total)
        keys = text if of_text else rest
        rows = slice(rest.start, rest.start + PATCHES)
        mask = torch.ones(len(source.query), 1, total, total, dtype=torch.bool)
        if source.attn_mask is not None:
            mask = source.attn_mask.expand(-1, 1, total, total)
        bias = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)[:, :, rows, keys]
        parts.append((source.key[:, :, keys].double(), source.value[:, :, keys].double(), bias))
    keys_, values, bias = zip(*parts, strict=True)
    return torch.cat(keys_, 2), torch.cat(values, 2), torch.cat(bias, 3)


def assert_redirected(
    call: AttentionCall, edited: Tensor | None, other: AttentionCall | None, image_at: str, policy: Any
) -> None:
    """Located rows equal softmax attention over the image keys and the other call's text; the rest is stock."""
    assert edited is not None
    start = 0 if image_at == "start" else call.query.shape[2] - PATCHES - REFERENCE
    output = slice(start, start + PATCHES)
    k, v, bias = joined(call, other, image_at)
    expected = (call.query[:, :, output].double() @ k.mT * 8**-0.5 + bias).softmax(-1) @ v
    rows = classes(policy) != STOCK
    error = (edited[:, :, output].double() - expected).abs().amax((1, 3))
    assert error[rows].max() < 2e-6
    changed = torch.zeros(call.query.shape[0], call.query.shape[2], dtype=torch.bool)
    changed[:, output] = rows
    assert torch.equal((edited != call.output).any(-1).any(1), changed)


LAYOUT = Layout(PATCHES + REFERENCE, PATCHES, GRID)


@pytest.mark.parametrize("masked", ["none", "keys", "full"])
@pytest.mark.parametrize("image_at", ["start", "end"])
@pytest.mark.parametrize("order", ["cond first", "uncond first", "unnamed"])
def test_redirect_sees_the_text_of_the_last_unconditional_pass(image_at: str, masked: str, order: str) -> None:
    policy = Redirect()
    session = Driven([rule(policy)], image_at)
    conds = [text_call(s, 5, image_at, masked=masked) for s in (1, 2)]
    unconds = [text_call(s, 3, image_at, masked=masked) for s in (3, 4)]
    edits = []
    for step, sigma in enumerate((1.0, 0.5)):
        passes = [("cond", conds[step]), ("uncond", unconds[step])]
        for name, call in passes[::-1] if order == "uncond first" else passes:
            session.name = None if order == "unnamed" else name
            edited = forward(session, call, sigma, LAYOUT)
            if name == "cond":
                edits.append(edited)
            else:
                assert edited is None
    sources = unconds if order == "uncond first" else [None, unconds[0]]
    for call, edited, other in zip(conds, edits, sources, strict=True):
        assert_redirected(call, edited, other, image_at, policy)
    held = session.regulation._uncond._texts["a"]
    for tensor in (held.key, held.value):
        assert tensor.shape[2] == 3
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 4, "nothing but the text is kept alive"


@pytest.mark.parametrize("masked", ["none", "keys", "full"])
@pytest.mark.parametrize("halves", ["uc", "cu"])
@pytest.mark.parametrize("image_at", ["start", "end"])
def test_redirect_sees_the_other_half_of_the_batch(image_at: str, halves: str, masked: str) -> None:
    policy = Redirect()
    session = Driven([rule(policy)], image_at, guidance=f"batched:{halves}", batched=True)
    whole = text_call(5, 4, image_at, batch=6, masked=masked)
    edited = forward(session, whole, 1.0, LAYOUT)
    assert edited is not None
    first, second = (
        attrs.evolve(whole, **{n: getattr(whole, n)[part] for n in ("query", "key", "value", "output")},
                     attn_mask=None if whole.attn_mask is None else whole.attn_mask[part])
        for part in (slice(0, 3), slice(3, 6))
    )  # fmt: skip
    cond, uncond, own = (second, first, slice(3, 6)) if halves == "uc" else (first, second, slice(0, 3))
    assert_redirected(cond, edited[own], uncond, image_at, policy)
    rest = slice(0, 3) if halves == "uc" else slice(3, 6)
    assert torch.equal(edited[rest], whole.output[rest])


def test_redirect_uses_one_negative_prompt_for_all_samples_and_refuses_two_for_three() -> None:
    policy = Redirect()
    call, one, two = text_call(1, 5, "end"), text_call(2, 4, "end", batch=1), text_call(2, 4, "end", batch=2)
    session = Driven([rule(policy)])
    for other in (one, two):
        forward(session, call, 1.0, LAYOUT)
        forward(session, other, 1.0, LAYOUT)
        if other is one:
            same = attrs.evolve(one, **{n: getattr(one, n).expand(3, -1, -1, -1) for n in ("query", "key", "value")})
            assert_redirected(call, forward(session, call, 0.5, LAYOUT), same, "end", policy)
            session = Driven([rule(policy)])
        else:
            with pytest.raises(UVRError, match="unconditional pass holds 2 samples and the conditional one 3"):
                forward(session, call, 0.5, LAYOUT)


@pytest.mark.parametrize(("guidance", "every_pass", "step"), [
    ("single", False, 0), ("batched:uc", False, 0), ("batched:uc", True, 0), ("two_pass", False, 1),
    ("two_pass", True, 1),
])  # fmt: skip
def test_redirect_without_guidance_raises_as_soon_as_that_is_known(guidance: str, every_pass: bool, step: int) -> None:
    policy, call = Redirect(), text_call(1, 5, "end")
    session = Driven([rule(policy)], bare=every_pass, guidance=guidance)
    if step:
        assert_redirected(call, forward(session, call, 1.0, LAYOUT), None, "end", policy)  # the text is cut
    with pytest.raises(UVRError, match=rf"none before a at step {step}: turn guidance on"):
        forward(session, call, 0.5, LAYOUT)


def test_nothing_is_remembered_for_policies_that_do_not_ask() -> None:
    session = Driven([rule(Block())])
    for _ in range(2):
        forward(session, text_call(1, 5, "end"), 1.0, LAYOUT)
    assert session.run.passes == [2]
    assert not session.regulation._uncond._texts


# ---------------------------------------------------------------------------------------------- several concepts


def two_masks() -> tuple[np.ndarray, np.ndarray]:
    """Of two concepts in the first sample, overlapping; the second alone in the third sample."""
    one, two = np.zeros((3, *GRID), bool), np.zeros((3, *GRID), bool)
    one[0, 0:2, 0:2] = True
    two[0, 1:3, 1:3] = two[2, 3, 3] = True
    return one, two


def together(*rules: ConceptPlan) -> tuple[AttentionCall, Tensor, Driven]:
    """One call through a session of several rules."""
    call = text_call(21, TEXT, "end")
    session = Driven(list(rules), seeds=(4, 5, 6))
    edited = forward(session, call, 0.9, LAYOUT)
    return call, call.output if edited is None else edited, session


def rows_of_rule(edited: Tensor, stock: Tensor) -> Tensor:
    return (edited != stock).any(-1).any(1)


def test_each_concept_is_regulated_by_its_own_policy_and_the_first_listed_wins_an_overlap() -> None:
    one, two = two_masks()
    first, second = rule(Block(ring=0), where=one), rule(Noise(1.0), where=two)
    call, both, _ = together(first, second)
    alone = {name: together(r)[1] for name, r in (("first", first), ("second", second))}
    mine, theirs = (rows_of_rule(alone[name], call.output) for name in ("first", "second"))
    assert (mine & theirs).any()
    rows = rows_of_rule(both, call.output)
    assert torch.equal(rows, mine | theirs)
    by_row = both.transpose(1, 2)
    assert torch.equal(by_row[mine], alone["first"].transpose(1, 2)[mine])
    blocked = restricted(
        call.query, call.key, call.value, torch.cat([torch.zeros(TEXT), torch.ones(PATCHES), torch.zeros(REFERENCE)])
        .expand(3, KEYS, KEYS)
    )  # fmt: skip
    assert (by_row[mine].double() - blocked.transpose(1, 2)[mine]).abs().max() < 5e-6
    only_second = theirs & ~mine
    noise = by_row[only_second]
    assert only_second[2].any()
    assert (noise != call.output.transpose(1, 2)[only_second]).all()
    _, reversed_, _ = together(second, first)
    assert torch.equal(reversed_.transpose(1, 2)[theirs], alone["second"].transpose(1, 2)[theirs])


@pytest.mark.parametrize("idle", [Observe(), Noise(startup=0.95)], ids=["observe", "noise after startup"])
def test_a_policy_that_does_nothing_claims_nothing(idle: Any) -> None:
    one, two = two_masks()
    _, alone, _ = together(rule(Block(), where=two))
    _, both, session = together(rule(idle, where=one), rule(Block(), where=two))
    assert torch.equal(both, alone)
    assert [t.steps_regulated() for t in session.states] == [[0, 0, 0], [1, 0, 1]]


def test_refuse_refuses_for_a_concept_that_lies_under_another() -> None:
    _, two = two_masks()
    _, _, session = together(rule(Block(), where=two), rule(Refuse(instead="a picture"), where=two))
    concept = session.regulation.plan[1].name
    assert session.regulation._refusals == {0: Refusal(concept, 0, "a picture"), 2: Refusal(concept, 0, "a picture")}


def test_a_concept_that_is_wholly_claimed_is_reported_as_not_regulated() -> None:
    _, two = two_masks()
    _, _, session = together(rule(Block(), where=two), rule(Block(), where=two))
    assert [t.steps_regulated() for t in session.states] == [[1, 0, 1], [0, 0, 0]]


def test_column_scales_multiply_and_leave_claimed_rows() -> None:
    """Two concepts under "uvr-released" in editing: by hand, with weights that are not normalised again."""
    one, two = two_masks()
    policy = UvrReleased(strong=0.2, mild=0.5, boost=1.1)
    call = text_call(21, TEXT, "end")
    _, output, reference = spans("end", True)
    layout = Layout(PATCHES + REFERENCE, PATCHES, GRID, ((2, 3),))
    facing = [((2 * r + 1) * 4 // 4) * 5 + (2 * c + 1) * 5 // 6 for r in range(2) for c in range(3)]

    def scale(where: np.ndarray) -> tuple[Tensor, Tensor]:
        """(3, queries, keys) factors, and which patches are located (3, N)."""
        wide = np.stack([ndimage.binary_dilation(m, np.ones((3, 3))) if m.any() else m for m in where])
        core, ring = (torch.from_numpy(x.reshape(3, PATCHES)) for x in (where, wide & ~where))
        factor = torch.ones(3, KEYS, KEYS, dtype=torch.float64)
        source = torch.where(core[:, facing], 0.2, torch.where(ring[:, facing], 0.5, 1.0)).double()
        for sample in np.flatnonzero(where.any((1, 2))):
            factor[sample, : output.stop, reference] = source[sample]
            factor[sample, output, : output.stop] = 1.1
        return factor, core | ring

    (a, mine), (b, _) = scale(one), scale(two)
    weight = (call.query.double() @ call.key.double().mT * 8**-0.5).softmax(-1)
    first, both = ((weight * f[:, None]) @ call.value.double() for f in (a, a * b))
    claimed = torch.zeros(3, KEYS, dtype=torch.bool)
    claimed[:, output] = mine
    expected = torch.where(claimed[:, None, :, None], first, both)
    session = Driven([rule(policy, where=one), rule(policy, where=two)])
    edited = forward(session, call, 0.9, layout)
    assert edited is not None
    assert (edited.double() - expected).abs().max() < 5e-6
    assert torch.equal(edited[1], call.output[1])
    _, blocked_first, _ = together(rule(Block(), where=one), rule(policy, where=two))
    _, blocked, _ = together(rule(Block(), where=one))
    assert torch.equal(blocked_first.transpose(1, 2)[claimed], blocked.transpose(1, 2)[claimed])


# ---------------------------------------------------------------------------------------------- what counts as an edit


@attrs.frozen
class Fixed:
    """A policy with given fields of the edit."""

    fields: dict[str, Any]
    nobody: bool = False
    name: str = "fixed"
    masks: MaskOptions = attrs.field(default=MaskOptions(ring=0))

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        rows = row_classes(located)
        return FlowEdit(torch.zeros_like(rows) if self.nobody else rows, **self.fields)


exact = reweight.restricted_rows


def factor(value: float) -> Tensor:
    return torch.full((3, TEXT), value)


NEUTRAL: dict[str, Fixed] = {
    "nothing asked": Fixed({}),
    "factors of one": Fixed({"reweight": Reweight(text_factor=factor(1.0))}),
    "no rows": Fixed({"reweight": Reweight(text_factor=factor(0.1)), "noise": NoiseBlend(0.5, 0.5)}, nobody=True),
    "noise on the ring alone": Fixed({"noise": NoiseBlend(ring=0.9)}),
    "another class's table": Fixed({"reweight": Reweight(ring=KeyWeights(text=0.0, reference=0.0))}),
}
REAL: dict[str, Fixed] = {
    "a factor": Fixed({"reweight": Reweight(text_factor=factor(0.1))}),
    "a table": Fixed({"reweight": Reweight(core=KeyWeights(text=0.0))}),
    "noise": Fixed({"noise": NoiseBlend(core=0.5)}),
}


@pytest.mark.parametrize("kind", [*NEUTRAL, *REAL])
def test_steps_are_counted_in_which_an_output_changed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other rounding in rows that are computed anew, here made sure of, is no change."""
    monkeypatch.setattr(reweight, "restricted_rows", lambda *args, **options: 1.000001 * exact(*args, **options))
    policy = {**NEUTRAL, **REAL}[kind]
    session = Driven([rule(policy)])
    for sigma in (1.0, 0.5):
        forward(session, text_call(1, TEXT, "end"), sigma, LAYOUT)
    assert session.states[0].steps_regulated() == ([0, 0, 0] if kind in NEUTRAL else [2, 0, 2])


def test_selective_counts_the_steps_in_which_a_token_was_chosen() -> None:
    session = Driven([
        rule(Selective(contrast=1e6, instruction_contrast=1e6, source_contrast=1e6, amplification=1.0))
    ])  # fmt: skip
    forward(session, text_call(1, TEXT, "end"), 1.0, LAYOUT)
    assert session.states[0].steps_regulated() == [0, 0, 0]


@pytest.mark.parametrize(
    "made", [Uvr(), UvrReleased(), Block(), Selective(), Noise(), Project(), Redirect(), Observe()]
)
def test_policies_are_policies(made: object) -> None:
    assert isinstance(made, Policy)
    edit = made.edit(located(0.0), info(torch.ones(1, 3), torch.ones(1, 1)))
    assert edit is None or isinstance(edit, FlowEdit)
