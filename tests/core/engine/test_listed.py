"""Rows are listed once until masks change, and anew whenever a tensor of rows is another or was written into."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from driven import joint

from uvr_core.adapter import Layout
from uvr_core.engine.listed import Listed, Lister
from uvr_core.intercept.calls import AttentionCall, JointCall
from uvr_core.protocols import RowClass

STOCK, CORE, RING = (int(kind) for kind in RowClass)
ONE = torch.tensor([[RING, CORE, CORE, RING], [STOCK, STOCK, CORE, STOCK], [STOCK, STOCK, STOCK, STOCK]])
TWO = torch.tensor([[STOCK, STOCK, RING, CORE], [CORE, STOCK, CORE, STOCK], [STOCK, STOCK, STOCK, STOCK]])


def call(text: int = 3, image_at: str = "end") -> JointCall:
    x = torch.zeros(3, 2, text + 4, 8)
    return joint(AttentionCall("a", x, x, x, x, None, None), Layout((2, 2)), image_at)


def test_the_rows_of_an_edit_their_kinds_and_patches() -> None:
    listed = Lister().listed([ONE], call())
    assert listed.rows.counts == (4, 1, 0)
    assert listed.rows.index.tolist() == [[3, 4, 5, 6], [5, 0, 0, 0], [0, 0, 0, 0]]
    assert listed.kinds.tolist() == [[RING, CORE, CORE, RING], [CORE, STOCK, STOCK, STOCK], [STOCK] * 4]
    assert listed.patches.tolist() == [[0, 1, 2, 3], [2, 0, 0, 0], [0, 0, 0, 0]]
    assert listed.by_kind(0.0, 0.5, 0.25)[0].tolist() == [0.25, 0.5, 0.5, 0.25]
    some, slots = listed.of_kind(RowClass.CORE)
    assert some.index[0].tolist() == [4, 5]
    assert slots.index[0].tolist() == [1, 2]
    assert some.counts == slots.counts == (2, 1, 0)


def test_what_an_earlier_edit_claims_is_not_listed() -> None:
    listed = Lister().listed([ONE, TWO], call())
    assert listed.rows.counts == (0, 1, 0)
    assert listed.rows.index[1].tolist() == [3]
    assert listed.claimed.tolist() == (ONE != STOCK).tolist()
    assert np.array_equal(listed.edited, TWO.numpy())


def test_the_same_tensors_are_listed_once_until_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    lister = Lister()
    first = lister.listed([ONE, TWO], call())
    assert lister.listed([ONE, TWO], call()) is first
    others = [lister.listed(*way) for way in (([TWO], call()), ([ONE.clone(), TWO], call()), ([ONE, TWO], call(5)))]
    assert first not in others
    assert others[2].rows.index[1].tolist() == [5]
    lister.forget()
    again = lister.listed([ONE, TWO], call())
    assert again is not first
    assert torch.equal(again.rows.index, first.rows.index)


@pytest.mark.parametrize("inference", [False, True])
def test_a_tensor_that_was_written_into_is_read_again(inference: bool) -> None:
    lister = Lister()
    with torch.inference_mode(inference):
        rows = ONE.clone()
        assert lister.listed([rows], call()).rows.counts == (4, 1, 0)
        rows[2] = CORE
        assert lister.listed([rows], call()).rows.counts == (4, 1, 4)


def test_rows_that_are_new_in_every_call_do_not_pile_up() -> None:
    lister = Lister()
    for _ in range(200):
        assert lister.listed([ONE.clone(), TWO], call()).rows.counts == (0, 1, 0)
    assert len(lister._listed) <= 130


def test_what_follows_from_rows_is_made_once() -> None:
    listed, calls = Lister().listed([ONE], call()), []
    for _ in range(2):
        assert listed.once("x", lambda: calls.append(1) or 7) == 7  # type: ignore[func-returns-value]
    assert len(calls) == 1
    assert isinstance(listed, Listed)
