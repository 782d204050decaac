"""The text is read once a run, in the first call of the block that tells it."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch
from runner import PROBE, Runner, make_bank

import uvr_core
from uvr_core import ConceptBank, TextCarriers
from uvr_core.engine import locate
from uvr_core.engine.readings import text_values
from uvr_core.intercept.calls import JointCall
from uvr_plugins.detectors import Oracle

FIRST, LATER = "transformer_blocks.0.attn", "single_transformer_blocks.1.attn"


def told_at(probe: str, name: str) -> ConceptBank:
    bank = make_bank(name, threshold=1e6)
    tensors = {**bank.tensors, f"text/{probe}": torch.ones(1, 32), f"text_offset/{probe}": torch.zeros(1)}
    return attrs.evolve(bank, tensors=tensors, text=TextCarriers(probe, 0.0))


def test_every_concept_reads_once_a_run_where_nothing_is_located_too(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, str, int]] = []
    scores = locate.text_scores

    def counted(call: JointCall, bank: ConceptBank, how: TextCarriers) -> torch.Tensor:
        read.append((bank.name, call.tap, call.forward.step))
        return scores(call, bank, how)

    monkeypatch.setattr(locate, "text_scores", counted)
    runner = Runner()
    stock = runner.run()
    with uvr_core.attach(runner.pipe, concepts=[told_at(FIRST, "x"), told_at(LATER, "y"), make_bank("z", 1e6)]):
        for _ in range(2):
            read.clear()
            assert (runner.run() == stock).all()
            assert read == [("x", FIRST, 0), ("y", LATER, 0)]


def asking(asks: float | None) -> ConceptBank:
    bank = told_at(FIRST, "x")
    assert bank.text is not None
    vector = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    text = attrs.evolve(bank.text, threshold=-1e6, asks=asks)
    return attrs.evolve(bank, tensors={**bank.tensors, f"text/{FIRST}": vector}, text=text)


def best_scores(runner: Runner) -> list[float]:
    """Of each prompt, its best token's."""
    told: list[torch.Tensor] = []
    bank = asking(None)
    with uvr_core.attach(runner.pipe) as reg, reg.recording(lambda call: told.append(text_values(call)), [FIRST]):
        runner.run()
    scores: list[float] = (told[0] @ bank.tensor("text", FIRST)[0]).amax(1).tolist()
    return scores


def test_a_prompt_that_asks_for_the_concept_locates_it_everywhere_from_the_first_step() -> None:
    runner = Runner()
    stock, best = runner.run(), best_scores(runner)
    *_, second, high = sorted(best)
    with uvr_core.attach(runner.pipe, concepts=asking((second + high) / 2)) as reg:
        image, report = runner.run(), reg.report
    assert report is not None
    for sample, score in enumerate(best):
        finding = report.findings[sample]
        assert finding.located == (score == high)
        assert (image[sample] != stock[sample]).any() == (score == high)
        if finding.located:
            assert (finding.first_step, finding.patches) == (0, finding.core.size)
            assert finding.steps_regulated == len(runner.pipe.scheduler.timesteps)
    everywhere = Oracle(np.stack([np.full(finding.core.shape, finding.located) for finding in report.findings]))
    bank = asking(None)
    assert bank.calibration is not None
    moved = {key.replace(PROBE, FIRST): tensor for key, tensor in bank.tensors.items() if PROBE in key}
    looked_for = attrs.evolve(
        bank, tensors={**bank.tensors, **moved}, calibration=attrs.evolve(bank.calibration, probe=FIRST)
    )
    with uvr_core.attach(runner.pipe, concepts=looked_for, detector=everywhere):  # by its picture, in the same call
        assert (runner.run() == image).all()


@pytest.mark.parametrize("policy", ["uvr", "block"])
def test_a_policy_that_needs_a_place_is_not_asked_for_what_the_text_alone_tells(policy: str) -> None:
    runner = Runner()
    stock = runner.run()
    with uvr_core.attach(runner.pipe, concepts=asking(-1e6), policy=policy) as reg:
        assert (runner.run() == stock).all()
    assert reg.report is not None
    assert not reg.report.findings[0].located
