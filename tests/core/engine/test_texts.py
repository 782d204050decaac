"""The text is read once a run, in the first call of the block that tells it."""

from __future__ import annotations

import attrs
import pytest
import torch
from runner import Runner, make_bank

import uvr_core
from uvr_core import ConceptBank, TextCarriers
from uvr_core.engine import locate
from uvr_core.intercept.calls import JointCall

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
