"""Masks in four dimensions, gathered at rows and keys."""

from __future__ import annotations

import math

import pytest
import torch
from matrices import MASKS, stock_mask

from uvr_core.ops.attn_mask import additive, as_4d, mask_keys, mask_rows


@pytest.mark.parametrize("kind", [kind for kind in MASKS if kind != "none"])
def test_rows_and_keys_of_a_mask_are_those_of_its_broadcast_form(kind: str) -> None:
    b, h, sq, sk = 2, 3, 5, 7
    q, k = torch.zeros(b, h, sq, 4), torch.zeros(b, h, sk, 4)
    mask = stock_mask(kind, b, h, sq, sk)
    assert mask is not None
    full = mask.expand(b, h, sq, sk)
    four = as_4d(mask, q, k)
    assert torch.equal(four.expand(b, h, sq, sk), full)
    rows, keys = torch.tensor([[4, 0, 0], [1, 2, 3]]), torch.tensor([[6, 1], [0, 5]])
    at_rows, at_keys = mask_rows(four, rows).expand(b, h, 3, sk), mask_keys(four, keys).expand(b, h, sq, 2)
    for sample in range(b):
        assert torch.equal(at_rows[sample], full[sample][:, rows[sample]])
        assert torch.equal(at_keys[sample], full[sample][:, :, keys[sample]])


def test_a_mask_that_does_not_broadcast_is_refused() -> None:
    x = torch.zeros(2, 2, 4, 8)
    for wrong in (torch.ones(4), torch.ones(3, 4), torch.ones(2, 4, 4, 5), torch.ones(4, 4, dtype=torch.long)):
        with pytest.raises(ValueError, match="attn_mask: expected"):
            as_4d(wrong, x, x)


def test_a_boolean_mask_becomes_zero_and_minus_infinity() -> None:
    assert additive(torch.tensor([True, False])).tolist() == [0.0, -math.inf]
    bias = torch.tensor([0.5])
    assert additive(bias) is bias
