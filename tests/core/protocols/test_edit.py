"""Parts of an edit refuse what they cannot mean, and name it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from uvr_core import UVRError
from uvr_core.protocols import (
    ColumnScale,
    ColumnWeights,
    FlowEdit,
    KeyClass,
    KeyWeights,
    NoiseBlend,
    Projection,
    Reweight,
    RowClass,
)

ROWS = torch.zeros(2, 6, dtype=torch.long)


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf, None, "1", 1j])
@pytest.mark.parametrize("part", [KeyWeights, ColumnWeights], ids=["keys", "columns"])
def test_a_factor_that_is_no_weight_is_named(part: Any, wrong: Any) -> None:
    with pytest.raises(UVRError, match=rf"{part.__name__}\.reference: expected a finite number >= 0, got "):
        part(reference=wrong)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan, None])
def test_a_share_of_noise_is_between_0_and_1(wrong: Any) -> None:
    with pytest.raises(UVRError, match=r"NoiseBlend\.ring: expected a number from 0 to 1"):
        NoiseBlend(ring=wrong)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: NoiseBlend(kind="pink"), r"NoiseBlend\.kind: expected 'matched' or 'unit', got 'pink'"),
        (lambda: Reweight(text="other"), r"Reweight\.text: expected 'own' or 'uncond'"),
        (lambda: Reweight(core=0.5), r"Reweight\.core: expected KeyWeights, got 0\.5"),
        (lambda: Reweight(text_factor=torch.ones(3)), r"Reweight\.text_factor: expected .*, got \(3,\) torch\.float32"),
        (lambda: Projection(torch.ones(8), ROWS), r"Projection\.offset: expected .*, got \(2, 6\) torch\.int64"),
        (lambda: Projection(torch.ones(8), torch.ones(2, 6), ring=-1.0), r"Projection\.ring: expected"),
        (lambda: ColumnScale(output=(1.0,) * 5), r"ColumnScale\.output: expected ColumnWeights"),
        (lambda: FlowEdit(ROWS.float()), r"FlowEdit\.rows: expected .* torch\.int64, got \(2, 6\) torch\.float32"),
        (lambda: FlowEdit(ROWS, KeyWeights()), r"FlowEdit\.reweight: expected Reweight, or None"),
    ],
)
def test_a_part_names_the_field_that_is_wrong(make: Any, says: str) -> None:
    with pytest.raises(UVRError, match=says):
        make()


def test_factors_of_own_text_and_other_text_exclude_each_other() -> None:
    with pytest.raises(UVRError, match="text_factor is for a row's own text tokens"):
        Reweight(text="uncond", text_factor=torch.ones(2, 3))


def test_what_asks_for_nothing_is_neutral() -> None:
    assert Reweight().neutral
    assert KeyWeights(1, 1, 1, 1).neutral
    for asks in (
        Reweight(ring=KeyWeights(located=0.5)),
        Reweight(text="uncond"),
        Reweight(text_factor=torch.ones(2, 3)),
        Reweight(reference_factor=torch.ones(2, 0)),
    ):
        assert not asks.neutral


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (FlowEdit(ROWS[:1]), "FlowEdit.rows"),
        (FlowEdit(ROWS[:, :5]), "FlowEdit.rows"),
        (FlowEdit(ROWS, Reweight(text_factor=torch.ones(2, 4))), "Reweight.text_factor"),
        (FlowEdit(ROWS, Reweight(reference_factor=torch.ones(2, 3))), "Reweight.reference_factor"),
        (FlowEdit(ROWS, projection=Projection(torch.ones(9), torch.ones(2, 6))), "Projection.vector"),
        (FlowEdit(ROWS, projection=Projection(torch.ones(8), torch.ones(2, 5))), "Projection.offset"),
    ],
)
def test_an_edit_of_another_call_is_refused(edit: FlowEdit, name: str) -> None:
    call = {"batch": 2, "patches": 6, "text": 3, "reference": 2, "width": 8}
    with pytest.raises(UVRError, match=rf"{name}: expected \("):
        edit.check_shapes(**call)
    reweight = Reweight(text_factor=torch.ones(2, 3), reference_factor=torch.ones(2, 2))
    FlowEdit(ROWS, reweight, Projection(torch.ones(8), torch.ones(2, 6))).check_shapes(**call)


def test_classes_count_from_what_is_left_alone() -> None:
    """Tables are indexed by them."""
    assert [RowClass.STOCK, RowClass.CORE, RowClass.RING] == [0, 1, 2]
    weights = KeyWeights(text=0.1, safe=0.2, located=0.3, reference=0.4)
    assert [getattr(weights, kind.name.lower()) for kind in KeyClass] == [0.1, 0.2, 0.3, 0.4]
