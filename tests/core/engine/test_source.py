"""The look at the source: what it locates is restricted from the first step; where it locates nothing, all is stock."""

from __future__ import annotations

import threading
from typing import Any

import attrs
import diffusers
import numpy as np
import pytest
import torch
from driven import plan_of
from PIL import Image
from rig import EDITING, MASK, PROMPTS, Rig, TextOnly

import uvr_core
from uvr_core import ConceptMismatch, SourceLook, UnsupportedRuntime, UVRError
from uvr_core.engine.source import MOST, Known, Look, Sources, Verdict, digests_of, sources_in
from uvr_core.intercept.ledger import Run

TEXT = "change the background to sky"


def bank_of(rig: Rig, threshold: float = 1e6, text: str = TEXT, **fields: Any) -> uvr_core.ConceptBank:
    """A concept that the output never shows, with a look at the source whose scores are those of one channel."""
    probe, width = rig.bank.probes[0], rig.bank.width
    direction = torch.zeros(1, 2 * width)
    direction[0, :width] = torch.randn(width, generator=torch.Generator().manual_seed(3))
    look = SourceLook("contrast", probe, (1.0, 0.99), threshold, threshold, text=text)
    return attrs.evolve(
        rig.bank,
        tensors={**rig.bank.tensors, f"source/{probe}": direction, f"source_offset/{probe}": torch.zeros(1)},
        calibration=uvr_core.Calibration("anchor", probe, (1.0, 0.0), 1e6),
        source=look,
        **fields,
    )


def split(rig: Rig) -> tuple[uvr_core.ConceptBank, int]:
    """The bank with a threshold between the two sources' scores, and the image whose source it locates."""
    with uvr_core.attach(rig.pipe, concepts=bank_of(rig), policy="observe") as reg:
        rig.run()
        scores = [finding.source_score for finding in reg.report.findings]
    assert scores[0] != scores[1]
    return bank_of(rig, sum(scores) / 2), int(np.argmax(scores))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", EDITING)
def test_nothing_located_is_bitwise_stock_and_costs_one_forward(name: str, guided: bool) -> None:
    rig = Rig(name)
    options: dict[str, Any] = {"true_cfg_scale": 3.0 if guided else 1.0}
    if guided:
        options["negative_prompt"] = [""] * len(PROMPTS)
    stock, forwards = rig.run(**options), []
    handle = rig.transformer.register_forward_hook(lambda module, args, output: forwards.append(1))
    rig.run(**options)
    usual = len(forwards)
    torch.manual_seed(5)
    state, scheduler = torch.get_rng_state(), dict(rig.pipe.scheduler.config)
    with uvr_core.attach(rig.pipe, concepts=bank_of(rig)) as reg:
        forwards.clear()
        assert torch.equal(rig.run(**options), stock)
        assert len(forwards) == usual + 1
        report = reg.report
    handle.remove()
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(rig.pipe.scheduler.config) == scheduler
    assert torch.equal(rig.run(**options), stock)
    assert (report.looks, report.known, report.passes) == (1, 0, 2 if guided else 1)
    assert report.fired == report.steps * report.passes * report.taps  # the look has a ledger of its own
    assert [f.located for f in report.findings] == [False, False]
    assert "1 forward more looked at the sources" in str(report)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", EDITING)
def test_what_it_locates_is_restricted_from_the_first_step_in_that_image_alone(name: str, guided: bool) -> None:
    rig = Rig(name)
    options: dict[str, Any] = {"true_cfg_scale": 3.0 if guided else 1.0}
    if guided:
        options["negative_prompt"] = [""] * len(PROMPTS)
    bank, shown = split(rig)
    stock = rig.run(**options)
    with uvr_core.attach(rig.pipe, concepts=bank) as reg:
        first = rig.run(**options)
        findings = reg.report.findings
        assert torch.equal(rig.run(**options), first)
        assert (reg.report.looks, reg.report.known) == (0, 2)
        assert "2 sources were known from an earlier look" in str(reg.report)
    assert not torch.equal(first[shown], stock[shown])
    assert torch.equal(first[1 - shown], stock[1 - shown])
    assert [f.located for f in findings] == [sample == shown for sample in range(2)]
    located = findings[shown]
    assert (located.first_step, located.from_source, located.outcome) == (0, True, "regulated")
    assert located.steps_regulated == 3
    assert located.patches == located.core.sum() > 0
    assert located.source_score >= located.source_threshold > findings[1 - shown].source_score


def test_a_picture_is_known_by_its_content_and_by_how_it_is_laid_out() -> None:
    rig = Rig("flux-kontext")
    one, other = (Image.new("RGB", (64, 64), colour) for colour in ("teal", "gold"))
    again = Image.new("RGB", (64, 64), "teal")
    looks = []
    with uvr_core.attach(rig.pipe, concepts=bank_of(rig)) as reg:
        for options in (
            {"image": one}, {"image": again}, {"image": [again, one]}, {"image": other}, {"image": [one, other]},
            {"image": one, "guidance_scale": 2.0}, {"image": one, "guidance_scale": 2.0},
            {"image": one, "joint_attention_kwargs": {"scale": 1.0}},
            {"image": one, "joint_attention_kwargs": {"scale": 1.0}},
        ):  # fmt: skip
            rig.run(**options)
            looks.append((reg.report.looks, reg.report.known))
    assert looks == [(1, 0), (0, 1), (0, 2), (1, 0), (0, 2), (1, 0), (0, 1), (1, 0), (1, 0)]


def test_a_verdict_follows_from_the_source_and_not_from_the_noise_or_the_prompt() -> None:
    rig = Rig("flux-kontext")
    scores = []
    for seed, prompt in ((1, "a cat"), (2, "a star on the left")):
        with uvr_core.attach(rig.pipe, concepts=bank_of(rig)) as reg:
            call = {"height": 64, "width": 64, "max_area": 64 * 64, "_auto_resize": False, "num_inference_steps": 1}
            source, noise = Image.new("RGB", (64, 64), "teal"), torch.Generator().manual_seed(seed)
            rig.pipe(prompt=prompt, image=source, generator=noise, **call)
            scores.append(reg.report.findings[0].source_score)
    assert scores[0] == scores[1]


def test_the_output_adds_to_what_the_source_shows() -> None:
    """The union: the same image is located by both, and holds the patches of both."""
    rig = Rig("flux-kontext")
    bank, shown = split(rig)

    class Corner:
        name, threshold = "corner", 0.0

        def scores(self, features: torch.Tensor, sigma: float, bank: Any, probe: str) -> torch.Tensor:
            scores = torch.full(features.shape[:2], -1.0)
            scores[shown][MASK[1].flatten()] = 1.0
            return scores

    with uvr_core.attach(rig.pipe, concepts=bank, policy="observe") as reg:
        rig.run()
        by_source = reg.report.findings[shown].core
    with uvr_core.attach(rig.pipe, concepts=bank, policy="observe", detector=Corner()) as reg:
        rig.run()
        both = reg.report.findings[shown]
    assert np.array_equal(both.core, by_source | MASK[1].numpy())
    assert both.from_source is True


def test_without_a_source_there_is_nothing_to_look_at() -> None:
    sources = Sources([_looking()], Known())
    assert sources.ahead({"image": None, "prompt": "a cat"}) is None
    assert (sources.forwards, sources.of("x", 2), sources.cores("x", 2, (8, 8))) == (0, [], None)


def test_a_step_cache_does_not_see_the_look() -> None:
    rig = Rig("qwen-image-edit")
    bank = bank_of(rig)
    assert bank.calibration is not None
    early = attrs.evolve(bank, calibration=attrs.evolve(bank.calibration, window=(1.0, 0.9)))
    rig.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=10.0))
    runs = []
    for look in (False, True):
        with uvr_core.attach(rig.pipe, concepts=early, look=look) as reg:
            runs.append(rig.run(num_inference_steps=6))
            assert reg.report.looks == look
            assert reg.report.reused > 0
    assert torch.equal(*runs)


def test_look_off_looks_nowhere() -> None:
    rig = Rig("flux-kontext")
    with uvr_core.attach(rig.pipe, concepts=bank_of(rig, -1e6), look=False) as reg:
        rig.run()
        assert reg.report.looks == 0
        assert [(f.located, f.source_score) for f in reg.report.findings] == [(False, None)] * 2


def test_where_nobody_can_look_nothing_is_attached() -> None:
    rig, flux = Rig("flux-kontext"), Rig("flux")
    bank = bank_of(rig)
    with pytest.raises(UnsupportedRuntime, match="a bare transformer the source alone"):
        uvr_core.attach(rig.transformer, concepts=bank)
    with pytest.raises(UnsupportedRuntime, match=r"a FluxPipeline the source alone.*edits: FluxKontextPipeline"):
        uvr_core.attach(flux.pipe, concepts=bank)
    other = attrs.evolve(bank_of(rig, text="make it night"), name="y")
    with pytest.raises(ConceptMismatch, match="under different texts: 'change the background to sky', 'make it night'"):
        uvr_core.attach(rig.pipe, concepts=[bank, other])
    bare = {key: tensor for key, tensor in bank.tensors.items() if not key.startswith("source")}
    with pytest.raises(ConceptMismatch, match="has no 'source'"):
        uvr_core.attach(rig.pipe, concepts=attrs.evolve(bank, tensors=bare))
    lost = attrs.evolve(bank, source=attrs.evolve(bank.source, window=(0.5, 0.4)))
    with uvr_core.attach(rig.pipe, concepts=lost) as reg:
        with pytest.raises(UVRError, match="ran 1 steps from noise level 1 and did not look for 'x'"):
            rig.run()
        assert reg.report is None
        with pytest.raises(UnsupportedRuntime, match="expected one picture or a list of them, got dict"):
            rig.run(image={"picture": 1})


def test_a_broken_look_draws_nothing_and_is_not_remembered() -> None:
    rig = Rig("flux-kontext")
    bank = bank_of(rig)
    assert bank.source is not None
    worse = {**bank.tensors, f"source_offset/{bank.source.probe}": torch.tensor([3e38])}
    worse[f"source/{bank.source.probe}"] = torch.full_like(worse[f"source/{bank.source.probe}"], 3e38)
    with uvr_core.attach(rig.pipe, concepts=attrs.evolve(bank, tensors=worse)) as reg:
        for _ in range(2):
            with pytest.raises(UVRError, match="NaN or Inf in the score"):
                rig.run()
        assert reg.report is None


def test_a_pipeline_that_goes_on_is_refused() -> None:
    run = Run(("a",))
    run.end_step()
    run.end_step()
    with pytest.raises(UVRError, match="ran 2 steps"):
        Look(run, [_looking().look], lambda verdicts: None).on_end(None)  # type: ignore[list-item]


def test_two_threads_keep_their_own_verdicts() -> None:
    """Two pipelines around one transformer, each with a source and a concept of its own."""
    rig = Rig("flux-kontext")
    images = {"teal": Image.new("RGB", (64, 64), "teal"), "gold": Image.new("RGB", (64, 64), "gold")}
    call = {"height": 64, "width": 64, "max_area": 64 * 64, "_auto_resize": False, "num_inference_steps": 2}
    pipes, alone, together = {name: Rig("flux-kontext") for name in images}, {}, {}

    def draw(name: str, into: dict[str, Any]) -> None:
        pipe = pipes[name].pipe
        with uvr_core.attach(pipe, concepts=bank_of(rig)) as reg:
            for _ in range(3):
                noise = torch.Generator().manual_seed(1)
                drawn = pipe(prompt="a cat", image=images[name], generator=noise, output_type="latent", **call).images
            into[name] = drawn, reg.report.findings[0].source_score, reg.report.known

    for name in images:
        draw(name, alone)
    threads = [threading.Thread(target=draw, args=(name, together)) for name in images]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alone["teal"][1] != alone["gold"][1]
    for name in images:
        assert torch.equal(alone[name][0], together[name][0])
        assert alone[name][1:] == together[name][1:]


def test_rows_repeat_the_sources_in_order() -> None:
    known, plan = Known(), _looking()
    verdicts = [{"x": Verdict(float(i), np.eye(2, dtype=bool)[[i]])} for i in range(2)]
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("teal", "gold")]
    for digest, each in zip(digests_of(pictures, {}), verdicts, strict=True):
        known.add(digest, each)
    sources = Sources([plan], known)
    assert sources.ahead({"image": pictures}) is None
    assert [each.score for each in sources.of("x", 4)] == [0.0, 1.0, 0.0, 1.0]
    assert sources.of("y", 4) == []
    with pytest.raises(UVRError, match="3 rows follow the prompt and 2 sources were looked at"):
        sources.of("x", 3)
    with pytest.raises(UVRError, match=r"drew \(1, 2\) patches, and this run draws \(2, 2\)"):
        sources.cores("x", 2, (2, 2))
    assert sources.cores("x", 2, (1, 2)).tolist() == [[[True, False]], [[False, True]]]  # type: ignore[union-attr]


def test_what_is_known_is_bounded() -> None:
    known = Known()
    for number in range(MOST + 2):
        known.add(str(number), {})
    known.add(None, {})
    assert known.get("1") is None
    assert known.get("2") == {}
    assert known.get(None) is None


@pytest.mark.parametrize("kind", ["picture", "array", "tensor", "palette"])
def test_digests_tell_pictures_apart(kind: str) -> None:
    def picture(colour: int, size: tuple[int, int] = (4, 2)) -> Any:
        pixels = np.full((size[1], size[0], 3), colour, np.uint8)
        image = Image.fromarray(pixels)
        return {
            "picture": image,
            "array": pixels,
            "tensor": torch.from_numpy(pixels),
            "palette": image.quantize(2),
        }[kind]

    same, alike, other, turned = (
        digests_of([each], {})[0] for each in (picture(7), picture(7), picture(8), picture(7, (2, 4)))
    )
    assert same == alike
    assert len({same, other, turned}) == 3
    assert digests_of([picture(7)], {"height": 64}) != [same]
    assert digests_of([picture(7)], {"attention_kwargs": {"mask": torch.ones(1)}}) == [None]
    assert digests_of([picture(8), picture(7)], {})[1] != digests_of([picture(7, (2, 4)), picture(7)], {})[1]


def test_sources_are_told_apart() -> None:
    picture = Image.new("RGB", (4, 4))
    assert sources_in(picture) == [picture]
    assert sources_in((picture, picture)) == [picture, picture]
    assert [each.shape for each in sources_in(torch.zeros(3, 1, 4, 4))] == [(1, 4, 4)] * 3
    assert [each.shape for each in sources_in(np.zeros((4, 4, 3)))] == [(4, 4, 3)]
    for wrong in ([], [[picture]], "a picture", torch.zeros(1, 1, 1, 4, 4)):
        with pytest.raises(UnsupportedRuntime, match="image: expected one picture"):
            sources_in(wrong)


def _looking() -> Any:
    """A plan with a look that is never carried out."""
    rig_bank = uvr_core.ConceptBank(
        "x",
        uvr_core.Fingerprint("Driven", 1, 1, 4),
        {"source/a": torch.zeros(1, 8), "source_offset/a": torch.zeros(1)},
        source=SourceLook("anchor", "a", (1.0, 0.99), 0.0, text=TEXT),
    )
    detector = uvr_core.plugins.registry().make("detector", "contrast").object
    plan = plan_of(rig_bank, detector, TextOnly())
    return attrs.evolve(plan, look=attrs.evolve(plan, bank=rig_bank.at_source(), window=(1.0, 0.99)))
