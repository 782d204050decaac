"""The built-in detectors and policies against their equations, computed here by hand in float64."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import torch
from conftest import PROBE, make_bank
from scipy import ndimage
from torch import Tensor

from uvr_core import ConceptBank, UVRError
from uvr_core.adapter import Layout
from uvr_core.protocols import CORE, RING, STOCK, CallInfo, Detector, FlowEdit, Located, Policy
from uvr_core.seam import AttentionCall
from uvr_core.session import Rule, Session
from uvr_plugins.detectors import Anchor, AnchorCosine, Contrast, Oracle
from uvr_plugins.policies import Block, Observe, Selective, Uvr, UvrReleased

# ---------------------------------------------------------------------------------------------- detectors


@pytest.fixture(scope="module")
def features() -> Tensor:
    return torch.randn(3, 20, 32, generator=torch.Generator().manual_seed(3)) * 4


@pytest.fixture
def bank() -> ConceptBank:  # bins 1.0, 0.8, 0.5; 5 anchors of width 32
    bank = make_bank()
    bank.tensors[f"offset/{PROBE}"] = torch.tensor([0.5, -2.0, 7.0])
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


@pytest.mark.parametrize("detector", [Anchor(), AnchorCosine(), Contrast()])
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


STOCK_LINE = (1.0, 1.0, 1.0, 1.0)
CLASSES = [[CORE, RING, CORE, STOCK]]
CUSTOM = Uvr(strong=0.1, mild=0.5, boost=1.25, alpha=0.3, startup=0.8, until=0.2)


def test_uvr_weakens_what_is_not_output_and_boosts_safe_output() -> None:
    edit = CUSTOM.edit(located(), info())
    assert edit is not None
    assert edit.row_class.tolist() == CLASSES
    assert edit.table == (STOCK_LINE, (0.1, 1.25, 1.0, 0.1), (0.5, 1.25, 1.0, 0.5))
    assert edit.text_factor is None
    assert edit.noise == "matched"


@pytest.mark.parametrize(("sigma", "alpha"), [(1.0, 0.3), (0.8, 0.3), (0.79, 0.0), (0.2, 0.0), (0.19, None)])
def test_uvr_mixes_noise_at_startup_only_and_stops_at_until(sigma: float, alpha: float | None) -> None:
    edit = CUSTOM.edit(located(sigma), info())
    assert edit is None if alpha is None else edit is not None and edit.alpha == (0.0, alpha, 0.0)


@pytest.mark.parametrize(("sigma", "acts"), [(1.0, True), (0.85, True), (0.849, False), (0.1, False)])
def test_uvr_released_replaces_core_rows_within_startup_only(sigma: float, acts: bool) -> None:
    edit = UvrReleased().edit(located(sigma), info(reference=0))
    assert (edit is not None) == acts
    if edit is not None:
        assert edit.alpha == pytest.approx((0.0, 0.999, 0.0))
        assert edit.noise == "unit"
        assert edit.table == (STOCK_LINE,) * 3
        assert edit.text_factor is None


def test_uvr_released_scales_columns_when_there_is_a_source() -> None:
    edit = UvrReleased().edit(located(0.9), info())
    assert edit is not None
    assert edit.columns is not None
    assert edit.alpha == (0.0, 0.0, 0.0)
    assert edit.columns.table == ((1.0, 1.0, 1.0, 0.2, 0.4), (1.05, 1.05, 1.0, 0.2, 0.4), (1.0,) * 5)
    assert UvrReleased().edit(located(0.8), info()) is None


def test_block_cuts_text_and_reference_from_core_and_ring() -> None:
    edit = Block().edit(located(0.0), info())
    assert edit is not None
    assert edit.row_class.tolist() == CLASSES
    assert edit.table == (STOCK_LINE, (0.0, 1.0, 1.0, 0.0), (0.0, 1.0, 1.0, 0.0))
    assert edit.alpha == (0.0, 0.0, 0.0)


def test_selective_scales_only_the_tokens_that_feed_the_located_rows() -> None:
    policy = Selective(strong=0.25, contrast=2.0, instruction_contrast=0.4, source_contrast=1.5, until=0.3)
    contrast = torch.tensor([[0.4, 2.0, 2.1]])
    edit = policy.edit(located(), info(contrast, reference=0))
    assert edit is not None
    assert edit.text_factor is not None
    assert edit.text_factor.tolist() == [[1.0, 1.0, 0.25]]
    assert edit.reference_factor is None
    assert edit.table == (STOCK_LINE,) * 3
    edit = policy.edit(located(), info(contrast, torch.tensor([[1.6, 1.5]]), reference=2))
    assert edit is not None
    assert edit.text_factor is not None
    assert edit.reference_factor is not None
    assert edit.text_factor.tolist() == [[1.0, 0.25, 0.25]]
    assert edit.reference_factor.tolist() == [[0.25, 1.0]]
    assert policy.edit(located(0.29), info()) is None


def test_observe_changes_nothing() -> None:
    assert Observe().edit(located(), info()) is None


@pytest.mark.parametrize(
    ("policy", "options"),
    [(Uvr, {"strong": -0.1}), (Uvr, {"mild": 1.1}), (Uvr, {"boost": 0.9}), (Uvr, {"alpha": 2.0}),
     (UvrReleased, {"keep": -1.0}), (Selective, {"strong": 2.0}), (Selective, {"contrast": 0.0})],
)  # fmt: skip
def test_values_out_of_range_are_refused(policy: Any, options: dict[str, float]) -> None:
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


def flow(policy: Any, image_at: str = "end", output_first: bool = True, sigma: float = 0.9) -> tuple[Tensor, ...]:
    """One attention call through a session: (q, k, v, stock output, edited output), all (3, 2 heads, tokens, 8)."""
    generator = torch.Generator().manual_seed(11)
    q, k, v = (torch.randn(3, 2, KEYS, 8, generator=generator) * 2 for _ in range(3))
    stock = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    rule = Rule(
        make_bank(), Oracle(masks()), policy, "oracle", policy.name, "a", (1.0, 0.0), 0.0, 0.0,
        ring=getattr(policy, "ring", 1), margin=getattr(policy, "margin", 0),
    )  # fmt: skip
    session = Session([rule], ("a",), image_at, output_first, True, (4, 5, 6))
    session.begin_forward(Layout(PATCHES + REFERENCE, PATCHES, GRID), torch.full((3,), sigma))
    session.enter("a")
    edited = session.on_call(AttentionCall("a", q, k, v, stock, None, None))
    session.leave("a")
    session.end_forward()
    return q, k, v, stock, stock if edited is None else edited


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
    options = {"strong": 0.1, "instruction_contrast": 1.0, "source_contrast": 1.0, "amplification": 0.3}
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
            line[keys] = torch.where(contrast[keys] > 1.0, policy.strong, 1.0).float()
        line[output] = torch.where(restricted_rows, policy.amplification, 1.0)
        factor[sample, output] = torch.where(restricted_rows[:, None], line, torch.ones(KEYS))
        chosen_any |= bool((contrast[text] > 1.0).any()) and bool((contrast[text] <= 1.0).any())
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


@pytest.mark.parametrize("made", [Uvr(), UvrReleased(), Block(), Selective(), Observe()])
def test_policies_are_policies(made: object) -> None:
    assert isinstance(made, Policy)
    edit = made.edit(located(0.0), info(torch.ones(1, 3), torch.ones(1, 1)))
    assert edit is None or isinstance(edit, FlowEdit)
