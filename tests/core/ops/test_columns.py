"""Scaled columns against the materialised form in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from matrices import MASKS, assert_exact_to, generator, qkv, stock_mask, weights

from uvr_core.ops.columns import scaled_columns


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("d", [32, 128])
def test_scaled_columns_equal_the_matrix_form(d: int, kind: str) -> None:
    b, h, sq, sk = 2, 2, 11, 17
    q, k, v = qkv(d, b, h, sq, sk, d)
    mask = stock_mask(kind, b, h, sq, sk)
    columns = torch.rand(b, sk, generator=generator(1)) * 1.5
    columns[:, ::3] = 0
    a = weights(q.double(), k.double(), mask)
    want = a * columns.double()[:, None, None] @ v.double()
    assert_exact_to(scaled_columns(q, k, v, columns, attn_mask=mask), want)
    want = a * columns.double()[1] @ v.double()
    assert_exact_to(scaled_columns(q, k, v, columns[1], attn_mask=mask), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["none", "bool-keys", "float-full"])
def test_neutral_column_scales_are_bitwise_stock(kind: str, dtype: torch.dtype) -> None:
    b, h, sq, sk, d = 2, 3, 70, 90, 64
    q, k, v = (x.to(dtype).transpose(1, 2).contiguous().transpose(1, 2) for x in qkv(0, b, h, sq, sk, d))
    mask = stock_mask(kind, b, h, sq, sk)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(dtype)
    stock = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.equal(scaled_columns(q, k, v, torch.ones(sk), attn_mask=mask), stock)
    assert not torch.equal(scaled_columns(q, k, v, torch.full((sk,), 0.2), attn_mask=mask), stock)


def test_column_scales_round_once_in_bf16() -> None:
    q, k, v = (x.bfloat16() for x in qkv(0, 1, 2, 1, 1, 64))  # one key: the output is its value
    want = (v.double() * torch.tensor(0.2).double()).bfloat16()
    assert torch.equal(scaled_columns(q, k, v, torch.tensor([0.2])), want)


def test_column_scaling_refuses_mismatches() -> None:
    x = torch.zeros(2, 2, 4, 8)
    with pytest.raises(ValueError, match="column_scale: expected shape"):
        scaled_columns(x, x, x, torch.ones(5))
