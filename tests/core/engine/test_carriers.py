"""Which tokens of a prompt carry a concept: the rule, and what is refused."""

from __future__ import annotations

import attrs
import pytest
import torch
from calls import LAYOUT, TEXT, forward, rule, text_call
from driven import Driven
from runner import PROBE, Runner, make_bank

import uvr_core
from uvr_core import ConceptMismatch, TextCarriers, UVRError
from uvr_core.engine.carriers import chosen_by
from uvr_core.engine.plan import ConceptPlan
from uvr_core.protocols import CallInfo, Located


def test_tokens_at_the_threshold_or_near_the_best() -> None:
    how = TextCarriers("a", 1.0, margin=0.5)
    scores = torch.tensor([[2.0, 1.0, 0.9], [0.2, -0.2, -0.4], [-5.0, -9.0, -9.0]])
    assert chosen_by(scores, how).tolist() == [[True, True, False], [True, True, False], [True, False, False]]
    more = chosen_by(scores, how, 0.1)
    assert more.tolist() == [[True, True, True], [True, True, True], [True, False, False]]


@pytest.mark.parametrize("slack", [0.0, 0.7])
def test_carriers_grow_along_the_text_to_what_is_near_enough(slack: float) -> None:
    how = TextCarriers("a", 1.0, margin=0.5, grow=-1.0)
    scores = torch.randn(64, 12, generator=torch.Generator().manual_seed(0)) * 2
    plain = chosen_by(scores, attrs.evolve(how, grow=None), slack).tolist()
    expected = []
    for line, carrying in zip(scores.tolist(), plain, strict=True):
        for here in (*range(12), *reversed(range(12))):  # one way, and back
            beside = (here > 0 and carrying[here - 1]) or (here < 11 and carrying[here + 1])
            carrying[here] = carrying[here] or (beside and line[here] >= how.grow - slack)
        expected.append(carrying)
    assert chosen_by(scores, how, slack).tolist() == expected
    assert sum(map(sum, expected)) > sum(map(sum, chosen_by(scores, attrs.evolve(how, grow=None), slack).tolist()))


class Keeps:
    """A policy that keeps what it is told of the text, and writes into it if it is told to."""

    name = "keeps"

    def __init__(self, write: bool = False):
        self.write = write
        self.told: list[torch.Tensor | None] = []

    def edit(self, located: Located, call: CallInfo) -> None:
        told = call.carriers(0.0)
        self.told.append(told)
        if self.write and told is not None:
            told.zero_()


def with_text(vector: torch.Tensor, offset: float, probe: str = "a") -> uvr_core.ConceptBank:
    bank = make_bank(head_dim=8)
    tensors = {**bank.tensors, f"text/{probe}": vector[None], f"text_offset/{probe}": torch.tensor([offset])}
    return attrs.evolve(bank, tensors=tensors, text=TextCarriers(probe, 0.0, margin=0.0))


def telling(policy: Keeps, bank: uvr_core.ConceptBank) -> ConceptPlan:
    return attrs.evolve(rule(policy, bank), text=bank.text)


def test_the_score_is_of_the_values_of_the_text() -> None:
    vector = torch.randn(16, generator=torch.Generator().manual_seed(3))
    call, policy = text_call(21, TEXT, "end"), Keeps()
    forward(Driven([telling(policy, with_text(vector, 0.2))], seeds=(4, 5, 6)), call, 0.9, LAYOUT)
    by_hand = call.value[:, :, :TEXT].transpose(1, 2).reshape(3, TEXT, 16) @ vector + 0.2
    bar = by_hand.amax(1, keepdim=True).clamp(max=0.0)
    (told,) = policy.told
    assert told is not None
    assert torch.equal(told, by_hand >= bar)


def test_a_bank_that_does_not_say_tells_nothing() -> None:
    policy = Keeps()
    forward(Driven([rule(policy)], seeds=(4, 5, 6)), text_call(21, TEXT, "end"), 0.9, LAYOUT)
    assert policy.told == [None]


def test_what_a_policy_writes_into_what_it_is_told_is_not_told_again() -> None:
    policy, call = Keeps(write=True), text_call(21, TEXT, "end")
    session = Driven([telling(policy, with_text(torch.ones(16), 0.0))], seeds=(4, 5, 6))
    forward(session, call, 0.9, LAYOUT)
    policy.write = False
    forward(session, call, 0.8, LAYOUT)
    first, second = policy.told
    assert first is not None
    assert second is not None
    assert not first.any()
    assert second.any(1).all()


def test_values_that_are_not_finite_are_an_error_and_not_a_prompt_without_the_concept() -> None:
    call = text_call(21, TEXT, "end")
    call.value[1, 0, 0, 0] = torch.nan
    session = Driven([telling(Keeps(), with_text(torch.ones(16), 0.0))], seeds=(4, 5, 6), bare=True)
    with pytest.raises(UVRError, match="NaN or Inf"):
        forward(session, call, 0.9, LAYOUT)


def test_a_bank_without_the_tensors_or_with_another_block_is_refused_when_it_is_attached() -> None:
    pipe = Runner().pipe
    bank = attrs.evolve(make_bank(), text=TextCarriers(PROBE, 0.0))
    with pytest.raises(ConceptMismatch, match="has no 'text' for probe"):
        uvr_core.attach(pipe, concepts=bank)
    tensors = {**bank.tensors, "text/nowhere": torch.ones(1, 32), "text_offset/nowhere": torch.zeros(1)}
    with pytest.raises(ConceptMismatch, match="probe 'nowhere' is no joint attention block"):
        uvr_core.attach(pipe, concepts=attrs.evolve(bank, tensors=tensors, text=TextCarriers("nowhere", 0.0)))
