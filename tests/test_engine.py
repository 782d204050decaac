"""Whole images out of a real (tiny, random) FluxPipeline: what must be bitwise stock, must change, must raise."""

from __future__ import annotations

import threading

import attrs
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from driven import joint, spied
from runner import PROBE, Runner, make_bank

import uvr_core
from uvr_core.adapter import Layout
from uvr_core.engine.readings import Compared, contrast
from uvr_core.intercept.calls import AttentionCall
from uvr_core.ops.masks import ring_of
from uvr_core.protocols import FlowEdit, row_classes
from uvr_plugins.detectors import Oracle
from uvr_plugins.policies import Uvr

POLICIES = ["uvr", "uvr-released", "block", "noise", "project"]


def one_masked() -> np.ndarray:
    """Masks of three samples, the first and last empty."""
    mask = np.zeros((3, 8, 8), bool)
    mask[1, 2:5, 3:6] = True
    return mask


def test_attached_without_concepts_is_bitwise_stock_and_says_observe(runner: Runner) -> None:
    stock = runner.run()
    with uvr_core.attach(runner.pipe) as reg:
        assert np.array_equal(runner.run(), stock)
        report = reg.report
    assert report is not None
    assert (report.posture, report.steps, report.passes, report.taps, report.fired) == ("observe", 3, 1, 4, 12)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_nothing_located_is_bitwise_stock(runner: Runner, policy: str, guidance: float) -> None:
    stock = runner.run(true_cfg_scale=guidance)
    with uvr_core.attach(runner.pipe, concepts=make_bank(threshold=1e6), policy=policy) as reg:
        assert np.array_equal(runner.run(true_cfg_scale=guidance), stock)
        assert reg.report is not None
        assert reg.report.posture == "regulate"
        assert not any(f.located for f in reg.report.findings)
        assert reg.report.passes == (2 if guidance > 1 else 1)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_only_the_located_sample_changes(
    runner: Runner, bank: uvr_core.ConceptBank, policy: str, guidance: float
) -> None:
    stock = runner.run(true_cfg_scale=guidance)
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy=policy) as reg:
        images = runner.run(true_cfg_scale=guidance)
        report = reg.report
    same = [np.array_equal(a, b) for a, b in zip(images, stock, strict=True)]
    assert same == [True, False, True]
    assert [f.located for f in report.findings] == [False, True, False]
    assert report.findings[1].patches == 9
    assert report.findings[1].first_step == 0


def test_a_sample_does_not_depend_on_its_batch(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    """Masks and noise are per sample: the second image is the same picture alone and in a batch of three."""
    policy = Uvr(alpha=0.5)
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy=policy):
        together = runner.run()
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()[1:2]), policy=policy):
        generator = [torch.Generator().manual_seed(1)]
        alone = runner.pipe(
            ["a knife on the left"], generator=generator, height=64, width=64, num_inference_steps=3, output_type="np"
        ).images
    np.testing.assert_allclose(alone[0], together[1], atol=2e-5)


def test_noise_leaves_the_global_and_the_pipelines_generators_alone(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    torch.manual_seed(5)
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy=Uvr(alpha=0.5)):
        first = runner.run()
        second = runner.run()
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert np.array_equal(first, second)


def test_rows_outside_the_mask_are_bitwise_stock_inside_the_attention(
    runner: Runner, bank: uvr_core.ConceptBank
) -> None:
    """The edit as the model sees it: the first edited block's output differs at the masked rows and nowhere else."""
    seen: dict[str, torch.Tensor] = {}
    block = runner.pipe.transformer.single_transformer_blocks[0].attn
    handle = block.register_forward_hook(lambda m, a, out: seen.__setitem__("out", out.clone()))
    runner.run(num_inference_steps=1)
    stock = seen["out"]
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy="block"):
        runner.run(num_inference_steps=1)
    handle.remove()
    different = (seen["out"] != stock).any(-1)  # (B, text + patches)
    core = torch.zeros(3, 8, 8, dtype=torch.bool)
    core[1, 1:6, 2:7] = True  # with its ring
    assert torch.equal(different[:, -64:], core.reshape(3, 64))
    assert not different[:, :-64].any()


def test_policy_table_is_what_flows(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    """A located row with every weight cut but text equals attention over text alone, computed by hand."""

    class TextOnly:
        name = "text-only"
        ring = 0

        def edit(self, located, call):  # type: ignore[no-untyped-def]
            return FlowEdit(row_classes(located), ((1.0,) * 4, (1.0, 0.0, 0.0, 0.0), (1.0,) * 4))

    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy=TextOnly()) as reg:
        calls = spied(reg)
        runner.run(num_inference_steps=1)
    call, edited = next((c, e) for c, e in calls if e is not None and c.path == PROBE)
    text = call.key.shape[2] - 64
    row = text + 2 * 8 + 3
    q, k, v = (x[1].double() for x in (call.query, call.key[:, :, :text], call.value[:, :, :text]))
    expected = torch.einsum("hd,hkd->hk", q[:, row], k) * q.shape[-1] ** -0.5
    expected = torch.einsum("hk,hkd->hd", expected.softmax(-1), v)
    assert (edited[1, :, row].double() - expected).abs().max() < 2e-6


def test_detach_restores_everything(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    transformer = runner.pipe.transformer
    processors = [m.processor for n, m in transformer.named_modules() if n.endswith(".attn")]
    keys = list(transformer.state_dict())
    stock = runner.run()
    reg = uvr_core.attach(runner.pipe, concepts=bank, policy="block", detector=Oracle(one_masked()))
    assert not np.array_equal(runner.run(), stock)
    assert list(transformer.state_dict()) == keys
    reg.detach()
    reg.detach()
    assert not reg.attached
    assert type(runner.pipe) is FluxPipeline
    assert [m.processor for n, m in transformer.named_modules() if n.endswith(".attn")] == processors
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in transformer.modules())
    assert np.array_equal(runner.run(), stock)


def test_fused_projections_after_attach_are_still_regulated(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy="block"):
        regulated = runner.run()
        runner.pipe.transformer.fuse_qkv_projections()
        fused = runner.run()
        runner.pipe.transformer.unfuse_qkv_projections()
    np.testing.assert_allclose(fused, regulated, atol=2e-5)


def test_a_replaced_processor_is_seated_again_and_survives_detach(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    attention = runner.pipe.transformer.transformer_blocks[0].attn
    reg = uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy="block")
    regulated = runner.run()
    mine = FluxAttnProcessor()
    attention.processor = mine
    assert np.array_equal(runner.run(), regulated)
    reg.detach()
    assert attention.processor is mine


def test_an_unknown_processor_is_refused_by_name(runner: Runner) -> None:
    class Opaque:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):  # type: ignore[no-untyped-def]
            return hidden_states

    attention = runner.pipe.transformer.transformer_blocks[1].attn
    stock, attention.processor = attention.processor, Opaque()
    with pytest.raises(uvr_core.UnsupportedRuntime, match=r"transformer_blocks\.1\.attn.*Opaque"):
        uvr_core.attach(runner.pipe)
    assert not hasattr(type(runner.pipe.transformer.transformer_blocks[0].attn.processor), "_uvr_taps")
    attention.processor = stock


def test_a_skipped_block_raises_and_no_image_comes_out(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    block = runner.pipe.transformer.single_transformer_blocks[1]
    forward = block.forward
    calls = []

    def skipping(hidden_states, encoder_hidden_states, *args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 2:  # what a block cache does at its second step
            return encoder_hidden_states, hidden_states
        return forward(hidden_states, encoder_hidden_states, *args, **kwargs)

    block.forward = skipping
    with uvr_core.attach(runner.pipe, concepts=bank), pytest.raises(uvr_core.TapNotFired, match=r"tap 4 of 4 .*step 1"):
        runner.run()


def test_first_block_cache_raises(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    from diffusers import FirstBlockCacheConfig

    runner.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=10.0))
    with uvr_core.attach(runner.pipe, concepts=bank), pytest.raises(uvr_core.TapNotFired, match="did not fire"):
        runner.run(num_inference_steps=4)
    runner.pipe.transformer.disable_cache()


def test_a_concept_that_was_never_looked_for_withholds_the_images(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    """Fewer steps, or image-to-image at low strength: no step falls into the window the bank was calibrated for."""
    missed = attrs.evolve(bank, calibration=attrs.evolve(bank.calibration, window=(0.2, 0.1)))
    with uvr_core.attach(runner.pipe, concepts=missed), pytest.raises(uvr_core.UVRError, match="never looked for"):
        runner.run()


def test_nan_in_a_score_raises(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    with torch.no_grad():
        runner.pipe.transformer.single_transformer_blocks[0].attn.to_v.weight[0, 0] = torch.nan
    with uvr_core.attach(runner.pipe, concepts=bank), pytest.raises(uvr_core.UVRError, match="NaN or Inf in the score"):
        runner.run()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("bare", [False, True])
def test_an_exception_inside_attention_leaves_nothing_behind(
    runner: Runner, bank: uvr_core.ConceptBank, error: type[BaseException], bare: bool
) -> None:
    stock = runner.run()
    target = runner.pipe.transformer if bare else runner.pipe
    reg = uvr_core.attach(target, concepts=bank, detector=Oracle(one_masked()), policy="block")
    regulated = runner.run()
    inner = runner.pipe.transformer.single_transformer_blocks[0].attn.to_v

    def explode(*args: object) -> None:
        raise error("boom")

    handle = inner.register_forward_hook(explode)
    with pytest.raises(error, match="boom"):
        runner.run()
    handle.remove()
    assert np.array_equal(runner.run(), regulated)
    reg.detach()
    assert np.array_equal(runner.run(), stock)


def test_bare_transformer_regulates_and_reports_progress(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy="block"):
        whole = runner.run()
    with uvr_core.attach(runner.pipe.transformer, concepts=bank, detector=Oracle(one_masked()), policy="block") as reg:
        assert np.array_equal(runner.run(), whole)
        assert np.array_equal(runner.run(), whole)
        assert reg.report.posture == "incomplete"
        assert reg.report.steps == 3


def test_two_threads_on_two_models_do_not_meet() -> None:
    runners = [Runner(), Runner()]
    plans = [one_masked(), np.roll(one_masked(), 1, 0)]
    expected, got = [], [None, None]
    for r, plan in zip(runners, plans, strict=True):
        with uvr_core.attach(r.pipe, concepts=make_bank(), detector=Oracle(plan), policy="block"):
            expected.append(r.run())
    regs = [
        uvr_core.attach(r.pipe, concepts=make_bank(), detector=Oracle(plan), policy="block")
        for r, plan in zip(runners, plans, strict=True)
    ]

    def work(i: int) -> None:
        got[i] = runners[i].run()  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    [r.detach() for r in regs]
    assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))


def test_attaching_twice_is_refused_and_harms_nothing(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    stock = runner.run()
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy="block"):
        regulated = runner.run()
        with pytest.raises(uvr_core.UnsupportedRuntime, match="already regulated"):
            uvr_core.attach(runner.pipe)
        assert np.array_equal(runner.run(), regulated)
    assert np.array_equal(runner.run(), stock)


def test_overlapping_concepts_the_first_listed_one_wins(runner: Runner) -> None:
    a, b = make_bank("a"), make_bank("b")
    oracle, noisy = Oracle(one_masked()), Uvr(alpha=1.0)

    def run(*concepts: object) -> np.ndarray:
        with uvr_core.attach(runner.pipe, concepts=list(concepts), detector=oracle) as reg:
            images = runner.run()
            assert sum(f.located for f in reg.report.findings) == len(concepts)
        return images

    alone = run((a, Uvr()), (b, "observe"))
    assert np.array_equal(run((a, Uvr()), (b, noisy)), alone)
    assert not np.array_equal(run((b, noisy), (a, Uvr())), alone)


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


def test_steps_in_which_nothing_changed_are_not_counted(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    class Late:
        """Acts below a noise level; before, its edit is neutral."""

        name, ring = "late", 0

        def edit(self, located, call):  # type: ignore[no-untyped-def]
            factor = 0.0 if located.sigma < 0.7 else 1.0
            rows = row_classes(located)
            return FlowEdit(rows, text_factor=torch.full((len(rows), call.text), factor))

    stock = runner.run()
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy=Late()) as reg:
        images = runner.run()
        sigmas = [float(t) / 1000 for t in runner.pipe.scheduler.timesteps]
        assert [f.steps_regulated for f in reg.report.findings] == [0, sum(s < 0.7 for s in sigmas), 0]
        assert 0 < reg.report.findings[1].steps_regulated < 3
    assert np.array_equal(images[[0, 2]], stock[[0, 2]])


def test_refusals_name_what_is_wrong(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    with pytest.raises(uvr_core.AdapterNotFound, match="did you mean 'flux'"):
        uvr_core.attach(runner.pipe, "fluxx")
    with pytest.raises(uvr_core.AdapterNotFound, match="no adapter recognises Linear"):
        uvr_core.attach(torch.nn.Linear(2, 2))
    with pytest.raises(uvr_core.AdapterMismatch, match="expected a diffusers pipeline"):
        uvr_core.attach("flux")
    with pytest.raises(uvr_core.ConceptMismatch, match=r"heads 4 \(model has 2\)"):
        uvr_core.attach(runner.pipe, concepts=make_bank(heads=4))
    with pytest.raises(uvr_core.PluginError, match="did you mean 'uvr'"):
        uvr_core.attach(runner.pipe, concepts=bank, policy="uvrr")
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


@pytest.mark.parametrize(("side", "error"), [(16, 1e-5), (64, 0.1)])
def test_a_contrast_from_some_patches_is_that_of_all(side: int, error: float) -> None:
    """Words that feed a place of their own, one of them the located place: up to 256 + 512 patches all are taken."""
    torch.manual_seed(3)
    layout, text = Layout(side * side, side * side, (side, side)), 8
    key = torch.randn(2, 2, text + side * side, 16)
    query = torch.randn(2, 2, text + side * side, 16)
    core, there = np.zeros((2, side, side), bool), side // 4
    for word in range(text):  # a stripe of the picture looks at each word, the located square at word 0
        query[:, :, text + word * there * side : text + (word + 1) * there * side] += 0.3 * key[:, :, [word]]
    for sample, corner in enumerate((1, side // 2)):
        core[sample, corner : corner + there, corner : corner + there] = True
        rows = text + torch.from_numpy(core[sample].reshape(-1).nonzero()[0])
        query[sample, :, rows] += 0.5 * key[sample, :, [0]]
    ring = np.stack([ring_of(mask) for mask in core])
    call = AttentionCall("x", query, key, key, query, None, None)
    got = contrast(joint(call, layout), Compared.of(core, ring, key.device))[:, :text]
    weight = (query @ key.mT / 4).softmax(-1).mean(1)[:, text:, :text]
    inside, rest = (torch.from_numpy(m.reshape(2, -1)).float() for m in (core, ~(core | ring)))
    want = (inside[:, None] @ weight)[:, 0] / inside.sum(1, True) / ((rest[:, None] @ weight)[:, 0] / rest.sum(1, True))
    assert (got / want - 1).abs().max() < error
    assert (got[:, 0] > 2.5).all()
