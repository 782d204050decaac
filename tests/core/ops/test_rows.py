"""Rows listed, gathered and written back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import generator, row_masks

from uvr_core.ops.noise import blended_rows
from uvr_core.ops.restrict import restricted_rows
from uvr_core.ops.rows import Rows, rows_of, rows_on, take_rows, write_rows


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1)))
def test_rows_of_lists_true_positions_in_order(mask: list[list[bool]]) -> None:
    rows = rows_of(torch.tensor(mask))
    told = rows_on(np.array(mask, bool).reshape(len(mask), -1), torch.device("cpu"))
    assert told.counts == rows.counts
    assert torch.equal(told.index, rows.index)
    assert torch.equal(told.valid, rows.valid)
    want = [[i for i, x in enumerate(sample) if x] for sample in mask]
    assert rows.counts == tuple(len(w) for w in want)
    assert rows.width == max(map(len, want))
    assert [rows.index[b, : len(w)].tolist() for b, w in enumerate(want)] == want
    assert torch.equal(rows.valid.sum(1), torch.tensor([len(w) for w in want]))
    assert (rows.index[~rows.valid] == 0).all()
    assert rows.valid.int().diff(dim=1).le(0).all()


def test_rows_refuses_what_it_cannot_mean() -> None:
    index, valid = torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask: expected \(B, Sq\) bool, got \(2, 3\) int64"):
        rows_of(index)
    with pytest.raises(ValueError, match=r"Rows\.index"):
        Rows(index.int(), valid, (3, 3))
    with pytest.raises(ValueError, match=r"Rows\.valid"):
        Rows(index, valid[:, :2], (3, 3))
    with pytest.raises(ValueError, match=r"Rows\.counts"):
        Rows(index, valid, (3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("blend", [False, True])
def test_write_rows_changes_valid_rows_only(dtype: torch.dtype, blend: bool) -> None:
    b, h, sq, d = 3, 2, 9, 8
    # transposed storage, as processors hand it over, with a NaN that must survive in the empty sample
    out = torch.randn(b, sq, h, d, generator=generator(0)).to(dtype).transpose(1, 2)
    out[-1, 0, 0, 0] = math.nan
    before = out.clone()
    mask = row_masks(b, sq)
    rows = rows_of(mask)
    new, noise = (torch.randn(b, h, rows.width, d, generator=generator(s)).to(dtype) for s in (1, 2))
    alpha = torch.rand(b, rows.width, generator=generator(3))
    alpha[0, :2] = torch.tensor([0.0, 1.0])
    noise[0, :, 0], new[0, :, 1] = math.nan, math.inf  # alpha 0 and 1 must not touch the other side
    got = write_rows(out, blended_rows(new, noise, alpha) if blend else new, rows)

    assert got is not out
    assert got.dtype == dtype
    assert torch.equal(out.nan_to_num(), before.nan_to_num())
    for i in range(b):
        keep = ~mask[i]
        assert torch.equal(got[i][:, keep].nan_to_num(7.0), out[i][:, keep].nan_to_num(7.0))
        for r, at in enumerate(mask[i].nonzero().flatten().tolist()):
            a = alpha[i, r].double() if blend else torch.tensor(0.0)
            want = new[i, :, r].double() if a == 0 else noise[i, :, r].double()
            if 0 < a < 1:
                want = (1 - a) * new[i, :, r].double() + a * noise[i, :, r].double()
            torch.testing.assert_close(
                got[i, :, at], want.to(dtype), rtol=1e-2 if dtype != torch.float32 else 1e-6, atol=1e-6
            )
            if a in (0, 1):
                assert torch.equal(got[i, :, at], want.to(dtype))


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_sample_alone_is_taken_and_written_as_in_a_batch(
    dtype: torch.dtype, in_place: bool, side_by_side: bool
) -> None:
    out = torch.randn(3, 9, 2, 8, generator=generator(0)).to(dtype).transpose(1, 2)
    out = out if side_by_side else out.contiguous()
    mask = row_masks(3, 9)
    both = rows_of(mask)
    new = torch.randn(3, 2, both.width, 8, generator=generator(1)).to(dtype)
    taken = take_rows(out, both)
    written = write_rows(out.clone(), new, both, in_place=in_place)
    assert not torch.equal(written, out)
    for i, count in enumerate(both.counts):
        rows, alone = rows_of(mask[i : i + 1]), out[i : i + 1].clone()
        assert torch.equal(take_rows(alone, rows)[0], taken[i, :, :count])
        got = write_rows(alone, new[i : i + 1, :, :count], rows, in_place=in_place)
        assert torch.equal(got[0], written[i])
        assert (got is alone) == (in_place or count == 0)


def test_write_rows_without_rows_returns_the_same_object() -> None:
    out = torch.randn(2, 3, 5, 4)
    rows = rows_of(torch.zeros(2, 5, dtype=torch.bool))
    assert rows.width == 0
    assert write_rows(out, out[:, :, :0], rows) is out
    assert restricted_rows(out, out, out, rows, torch.zeros(2, 0, 5)).shape == (2, 3, 0, 4)


def test_write_rows_padding_does_not_write_row_zero() -> None:
    """Sample 1 lists row 3 only and is padded with index 0: its row 0 stays, whatever the padding holds."""
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[0, :3], mask[1, 3] = True, True
    out, new = torch.zeros(2, 1, 4, 2), torch.full((2, 1, 3, 2), math.nan)
    new[0], new[1, :, 0] = 1.0, 2.0
    got = write_rows(out, new, rows_of(mask))
    assert got[:, 0, :, 0].tolist() == [[1, 1, 1, 0], [0, 0, 0, 2]]


def test_write_rows_refuses_mismatches() -> None:
    out, rows = torch.zeros(2, 1, 4, 2), rows_of(torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="new: expected shape"):
        write_rows(out, out[:, :, :3], rows)
