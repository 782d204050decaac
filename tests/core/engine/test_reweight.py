"""Rows under the factors of an edit, against attention computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from calls import (
    CORE,
    GRID,
    KEYS,
    LAYOUTS,
    PATCHES,
    REFERENCE,
    STOCK,
    TEXT,
    classes,
    flow,
    masks,
    restricted,
    rule,
    spans,
    text_call,
)  # fmt: skip
from driven import Driven, adapter_of, spied
from runner import PROBE, Runner

import uvr_core
from uvr_core.adapter import Layout
from uvr_core.engine.reweight import seen_keys
from uvr_core.protocols import CallInfo, FlowEdit, KeyWeights, Located, MaskOptions, Reweight, row_classes
from uvr_core.tokens import TokenSpans
from uvr_plugins.detectors import Oracle
from uvr_plugins.policies import Block, Uvr


def one_masked() -> np.ndarray:
    """Masks of three samples, the first and last empty."""
    mask = np.zeros((3, 8, 8), bool)
    mask[1, 2:5, 3:6] = True
    return mask


def test_policy_table_is_what_flows(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    """A located row with every weight cut but text equals attention over text alone, computed by hand."""

    class TextOnly:
        name = "text-only"
        masks = MaskOptions(ring=0)

        def edit(self, located, call):  # type: ignore[no-untyped-def]
            return FlowEdit(row_classes(located), Reweight(core=KeyWeights(safe=0.0, located=0.0, reference=0.0)))

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


@pytest.mark.parametrize(
    ("image_at", "output_first", "factors", "seen"),
    [
        ("end", True, (0.0, 1.0, 1.0, 0.0), slice(3, 7)),  # text 0-2, output 3-6, reference 7-8
        ("end", True, (0.0, 1.0, 1.0, 0.5), slice(3, 9)),
        ("end", True, (0.5, 1.0, 1.0, 0.0), slice(0, 7)),
        ("end", False, (0.0, 1.0, 1.0, 0.0), slice(5, 9)),  # text, reference 3-4, output
        ("end", False, (0.5, 1.0, 1.0, 0.0), slice(0, 9)),  # what is cut lies between what is seen
        ("start", True, (0.0, 1.0, 1.0, 0.0), slice(0, 4)),  # output 0-3, reference 4-5, text 6-8
        ("start", True, (0.5, 1.0, 1.0, 0.0), slice(0, 9)),
        ("start", False, (0.0, 1.0, 1.0, 0.0), slice(2, 6)),
        ("start", True, (1.0, 0.0, 0.0, 1.0), slice(0, 9)),  # output keys always stay
    ],
)
def test_keys_that_are_cut_for_a_class_are_left_out(
    image_at: str, output_first: bool, factors: tuple[float, ...], seen: slice
) -> None:
    spans = TokenSpans.of(adapter_of(image_at, output_first), Layout((2, 2), ((1, 2),)), 9)
    assert seen_keys(KeyWeights(*factors), spans) == seen


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


@pytest.mark.parametrize("image_at", ["start", "end"])
def test_padding_is_cut_with_the_text_and_is_no_text_token(image_at: str) -> None:
    """It carries what it has read of the text: with the factor of the picture, a tenth of the text's influence was
    left in Z-Image. Factors of single text tokens are not for it, and its own rows stay."""
    filled, told = 2, []

    class Telling(Block):
        def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
            told.append((call.text, call.text_contrast().shape[1]))
            return super().edit(located, call)

    call = text_call(5, TEXT + filled, image_at)
    layout = Layout(GRID, ((1, REFERENCE),), padding=filled)
    edited = Driven([rule(Telling(ring=0))], image_at).forward(call, 0.9, layout)
    assert edited is not None
    assert told == [(TEXT, TEXT)]
    output = spans(image_at, True)[1]
    if image_at == "end":
        output = slice(output.start + filled, output.stop + filled)
    core = torch.from_numpy(masks().reshape(3, PATCHES))
    factor = torch.ones(3, call.query.shape[2], call.query.shape[2])
    for sample in range(3):
        rows = output.start + core[sample].nonzero().flatten()
        factor[sample, rows] = 0.0
        factor[sample, rows, output] = 1.0
    expected = restricted(call.query, call.key, call.value, factor)
    assert (edited.double() - expected).abs().max() < 5e-6
