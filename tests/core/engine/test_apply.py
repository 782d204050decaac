"""Edits are written where they belong, and count where they changed something."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import torch
from calls import KEYS, LAYOUT, PATCHES, REFERENCE, TEXT, forward, restricted, rule, text_call, together, two_masks
from driven import Driven
from runner import Runner
from torch import Tensor

import uvr_core
from uvr_core.engine import reweight
from uvr_core.engine.withhold import Refusal
from uvr_core.protocols import CallInfo, FlowEdit, KeyWeights, Located, MaskOptions, NoiseBlend, Reweight, row_classes
from uvr_plugins.detectors import Oracle
from uvr_plugins.policies import Block, Noise, Observe, Refuse, Selective, Uvr


def one_masked() -> np.ndarray:
    """Masks of three samples, the first and last empty."""
    mask = np.zeros((3, 8, 8), bool)
    mask[1, 2:5, 3:6] = True
    return mask


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


def test_steps_in_which_nothing_changed_are_not_counted(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    class Late:
        """Acts below a noise level; before, its edit is neutral."""

        name, masks = "late", MaskOptions(ring=0)

        def edit(self, located, call):  # type: ignore[no-untyped-def]
            factor = 0.0 if located.sigma < 0.7 else 1.0
            rows = row_classes(located)
            return FlowEdit(rows, Reweight(text_factor=torch.full((len(rows), call.text), factor)))

    stock = runner.run()
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy=Late()) as reg:
        images = runner.run()
        sigmas = [float(t) / 1000 for t in runner.pipe.scheduler.timesteps]
        assert [f.steps_regulated for f in reg.report.findings] == [0, sum(s < 0.7 for s in sigmas), 0]
        assert 0 < reg.report.findings[1].steps_regulated < 3
    assert np.array_equal(images[[0, 2]], stock[[0, 2]])


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
