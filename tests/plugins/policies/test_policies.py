"""The built-in policies against their equations, computed here by hand in float64."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import torch
from calls import CORE, KEYS, LAYOUTS, PATCHES, RING, STOCK, classes, flow, info, located, masks, restricted, spans
from driven import Driven
from runner import make_bank

from uvr_core import ConceptBank, ConceptMismatch, UnsafeContent, UVRError
from uvr_core.ops.noise import matched_noise
from uvr_core.ops.rows import rows_of, take_rows
from uvr_core.protocols import (
    CallInfo,
    ColumnScale,
    ColumnWeights,
    Direction,
    FlowEdit,
    KeyWeights,
    Located,
    MaskOptions,
    NoiseBlend,
    Policy,
    PolicyTraits,
)
from uvr_plugins.policies import Block, Noise, Observe, Project, Redirect, Refuse, Selective, Uvr, UvrReleased

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


def test_selective_needs_no_place_unless_it_is_to_keep_to_the_located_patches() -> None:
    assert [PolicyTraits.of(Selective(everywhere=each)).by_text for each in (None, True, False)] == [True, True, False]


def test_selective_everywhere_withholds_the_words_from_every_patch_of_an_image_that_shows_something() -> None:
    contrast = torch.tensor([[9.0, 1.0, 3.0], [9.0, 9.0, 9.0]])
    call = info(contrast, reference=0)
    core = torch.tensor([[True, False, False, False], [False] * 4])  # the second image shows nothing
    ring = torch.tensor([[False, True, False, False], [False] * 4])
    both = Located(core, ring, (2, 2), 0.9, 0, (1.0, 0.0), None, "x")
    usual, everywhere = Selective().edit(both, call), Selective(everywhere=True).edit(both, call)
    assert usual is not None
    assert everywhere is not None
    assert usual.rows.tolist() == [[CORE, RING, STOCK, STOCK], [STOCK] * 4]
    assert everywhere.rows.tolist() == [[CORE, RING, RING, RING], [STOCK] * 4]
    assert everywhere.reweight is not None
    assert everywhere.reweight.text_factor is not None
    assert everywhere.reweight.text_factor[0].tolist() == [0.0, 1.0, 0.0]
    with_source = Selective(everywhere=True).edit(located(), info(contrast[:1], torch.ones(1, 1)))
    assert with_source is not None
    assert with_source.rows.tolist() == CLASSES  # a source has places of its own
    with pytest.raises(TypeError):
        Selective(everywhere="yes")


def test_selective_kept_reads_each_blocks_contrasts_once_for_the_same_masks() -> None:
    read: list[str] = []

    def call(path: str, text: float, reference: float) -> CallInfo:
        def of(tokens: str, contrast: float) -> torch.Tensor:
            read.append(f"{path} {tokens}")
            return torch.tensor([[contrast]])

        return CallInfo(path, 1, 1, lambda: of("text", text), lambda: of("reference", reference))

    def factors(policy: Selective, here: Located, *asked: Any) -> list[float]:
        edit = policy.edit(here, call(*asked))
        assert edit is not None
        assert edit.reweight is not None
        assert edit.reweight.text_factor is not None
        assert edit.reweight.reference_factor is not None
        return [float(edit.reweight.text_factor), float(edit.reweight.reference_factor)]

    here, kept = located(0.9), Selective(kept=True)
    assert factors(kept, here, "a", 9.0, 1.0) == [0.0, 1.0]
    later = attrs.evolve(here, sigma=0.5, step=7)
    assert factors(kept, later, "a", 1.0, 9.0) == [0.0, 1.0]
    assert factors(kept, later, "b", 1.0, 9.0) == [1.0, 0.0]
    assert read == ["a text", "a reference", "b text", "b reference"]
    assert factors(Selective(), later, "a", 1.0, 9.0) == [1.0, 0.0]
    assert factors(kept, located(0.5), "a", 1.0, 9.0) == [1.0, 0.0]  # other masks


def test_selective_withholds_the_tokens_that_carry_the_concept_from_every_patch_without_measuring_a_flow() -> None:
    core = torch.tensor([[True, False, False, False], [False] * 4])  # the second image shows nothing
    both = Located(core, torch.zeros(2, 4, dtype=torch.bool), (2, 2), 0.9, 0, (1.0, 0.0), None, "x")
    told = torch.tensor([[False, True, True], [True, False, False]])
    # info's contrast raises if it is asked for.
    call = attrs.evolve(info(reference=0), carriers=lambda slack: told if slack == 0 else told | ~told)
    edit, near = Selective(strong=0.25).edit(both, call), Selective(everywhere=False).edit(both, call)
    assert edit is not None
    assert near is not None
    assert edit.rows.tolist() == [[CORE, RING, RING, RING], [STOCK] * 4]
    assert near.rows.tolist() == [[CORE, STOCK, STOCK, STOCK], [STOCK] * 4]
    assert edit.reweight is not None
    assert edit.reweight.text_factor is not None
    assert edit.reweight.text_factor.tolist() == [[1.0, 0.25, 0.25], [0.25, 1.0, 1.0]]
    more = Selective(slack=2.0).edit(both, call)
    assert more is not None
    assert more.reweight is not None
    assert more.reweight.text_factor is not None
    assert more.reweight.text_factor[0].tolist() == [0.0, 0.0, 0.0]
    source = attrs.evolve(info(None, torch.tensor([[9.0]])), carriers=lambda slack: told[:1])
    edit = Selective().edit(located(), source)
    assert edit is not None
    assert edit.rows.tolist() == CLASSES  # a source has places of its own
    assert edit.reweight is not None
    assert edit.reweight.text_factor is not None
    assert edit.reweight.text_factor.tolist() == [[1.0, 0.0, 0.0]]


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
    assert PolicyTraits.of(Refuse()) == PolicyTraits(withholds=True)
    assert not PolicyTraits.of(policy).withholds
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
        flow(Project(), bank=probe_bank("2C"), references=())


@pytest.mark.parametrize(
    "made", [Uvr(), UvrReleased(), Block(), Selective(), Noise(), Project(), Redirect(), Observe()]
)
def test_policies_are_policies(made: object) -> None:
    assert isinstance(made, Policy)
    edit = made.edit(located(0.0), info(torch.ones(1, 3), torch.ones(1, 1)))
    assert edit is None or isinstance(edit, FlowEdit)
