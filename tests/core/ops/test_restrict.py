"""Reweighted rows against the materialised form in float64; every operator in bf16 and on the fused kernel."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import (
    FP32,
    MASKS,
    TABLE,
    assert_exact_to,
    assert_no_worse,
    contrast_masks,
    contrast_reference,
    generator,
    listed,
    qkv,
    reference_rows,
    restriction,
    row_masks,
    stock_mask,
    valid_part,
    weights,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from uvr_core.ops.columns import scaled_columns
from uvr_core.ops.mass import contrast_share, flow_contrast, mass_on
from uvr_core.ops.restrict import log_weights, redirected_rows, restricted_rows
from uvr_core.ops.rows import rows_of, write_rows


def test_log_weights_looks_up_the_table() -> None:
    row_class, key_class = torch.tensor([[0, 1], [2, 0]]), torch.tensor([[3, 0, 1], [2, 2, 0]])
    got = log_weights(row_class, key_class, TABLE)
    want = [[[TABLE[r, c].item() for c in key_class[b]] for r in row_class[b]] for b in range(2)]
    torch.testing.assert_close(got.exp(), torch.tensor(want))
    assert got[0, 0, 1] == -math.inf
    assert got.dtype == torch.float32


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf])
def test_a_lambda_that_is_no_weight_is_named(bad: float) -> None:
    table = TABLE.clone()
    table[1, 2] = bad
    zero = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"table\[1, 2\]: expected a finite lambda >= 0"):
        log_weights(zero, zero, table)


@pytest.mark.parametrize(("row", "key"), [(-1, 0), (3, 0), (0, -1), (0, 4)])
def test_a_class_outside_the_table_does_not_wrap_round(row: int, key: int) -> None:
    with pytest.raises((IndexError, RuntimeError)):
        log_weights(torch.tensor([[row]]), torch.tensor([[key]]), TABLE)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("d", [32, 64, 128])
def test_restricted_rows_equal_the_matrix_form(d: int, kind: str) -> None:
    b, h, sq, sk = 3, 2, 13, 21
    q, k, v = qkv(d, b, h, sq, sk, d)
    mask, rows = stock_mask(kind, b, h, sq, sk), rows_of(row_masks(b, sq))
    row_class, key_class, lam = restriction(b, rows, sk)
    log_weight = log_weights(row_class, key_class, TABLE)
    got = valid_part(restricted_rows(q, k, v, rows, log_weight, attn_mask=mask), rows)
    want = reference_rows(q.double(), k.double(), v.double(), rows, lam, mask)
    assert rows.counts[0] > rows.counts[1] > rows.counts[2] == 0
    for g, w in zip(got, want, strict=True):
        assert_exact_to(g, w)


@pytest.mark.parametrize("own", [slice(0, 5), slice(16, 21), slice(4, 9), slice(3, 3)], ids=str)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("other_kind", ["none", "bool-keys", "float-full"])
def test_redirected_rows_equal_attention_over_the_joined_keys(own: slice, kind: str, other_kind: str) -> None:
    b, h, sq, sk, t, d = 3, 2, 13, 21, 7, 16
    q, k, v = qkv(2, b, h, sq, sk, d)
    _, other_k, other_v = qkv(3, b, h, sq, t, d)
    mask, rows = stock_mask(kind, b, h, sq, sk), rows_of(row_masks(b, sq))
    other_mask = stock_mask(other_kind, b, h, rows.width, t)
    keys = sk - (own.stop - own.start) + t
    row_class, key_class, lam = restriction(b, rows, keys)
    log_weight = log_weights(row_class, key_class, TABLE)
    got = redirected_rows(
        q, k, v, rows, own, other_k, other_v, log_weight, attn_mask=mask, other_mask=other_mask, scale=0.4
    )

    def additive(x: Tensor | None, lead: int, length: int) -> Tensor:
        if x is None:
            return torch.zeros(b, h, lead, length, dtype=torch.float64)
        x = x[(None,) * (4 - x.dim())]
        bias = torch.zeros(x.shape).masked_fill(~x, -math.inf) if x.dtype == torch.bool else x
        return bias.double().expand(b, h, lead, length)

    mine, theirs = additive(mask, sq, sk), additive(other_mask, rows.width, t)
    for i, count in enumerate(rows.counts):
        for r in range(count):
            at = rows.index[i, r]

            def joined(x: Tensor, y: Tensor) -> Tensor:
                return torch.cat([x[:, : own.start].double(), y.double(), x[:, own.stop :].double()], 1)

            logits = (joined(k[i], other_k[i]) @ q[i, :, at].double()[..., None])[..., 0] * 0.4  # (H, keys)
            logits = logits + joined(mine[i, :, at], theirs[i, :, r]) + lam[i, r].log()
            want = (logits.softmax(-1)[:, None] @ joined(v[i], other_v[i]))[:, 0]
            assert_exact_to(got[i, :, r], want)


def test_redirected_rows_with_their_own_keys_are_restricted_rows() -> None:
    b, h, sq, sk, d = 2, 2, 6, 9, 8
    q, k, v = qkv(1, b, h, sq, sk, d)
    rows = rows_of(torch.ones(b, sq, dtype=torch.bool))
    bias = torch.zeros(b, sq, sk)
    same = redirected_rows(q, k, v, rows, slice(2, 5), k[:, :, 2:5], v[:, :, 2:5], bias)
    assert torch.equal(same, restricted_rows(q, k, v, rows, bias))
    nobody = rows_of(torch.zeros(b, sq, dtype=torch.bool))
    gone = redirected_rows(q, k, v, nobody, slice(0, 2), k[:, :, :1], v[:, :, :1], torch.zeros(b, 0, 8))
    assert gone.shape == (2, 2, 0, 8)


def test_redirected_rows_refuse_mismatches() -> None:
    q, k, v = qkv(1, 2, 2, 6, 9, 8)
    rows = rows_of(torch.ones(2, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"replaced: expected a slice within 0\.\.9"):
        redirected_rows(q, k, v, rows, slice(7, 12), k, v, torch.zeros(2, 6, 9))
    with pytest.raises(ValueError, match=r"log_weight: expected shape \(2, 6, 10\)"):
        redirected_rows(q, k, v, rows, slice(0, 2), k[:, :, :3], v[:, :, :3], torch.zeros(2, 6, 9))
    with pytest.raises(ValueError, match="k: expected"):
        redirected_rows(q, k, v, rows, slice(0, 2), k[:1], v[:1], torch.zeros(2, 6, 16))


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.5])
def test_restricted_rows_honour_the_scale(scale: float) -> None:
    b, h, sq, sk, d = 2, 2, 6, 9, 8
    q, k, v = qkv(1, b, h, sq, sk, d)
    rows = rows_of(torch.ones(b, sq, dtype=torch.bool))
    row_class, key_class, lam = restriction(b, rows, sk)
    want = torch.stack(reference_rows(q.double(), k.double(), v.double(), rows, lam, scale=scale))
    log_weight = log_weights(row_class, key_class, TABLE)
    assert_exact_to(restricted_rows(q, k, v, rows, log_weight, scale=scale), want, 5e-6)


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (3, 3, 8, 9))),
    d=st.sampled_from([8, 12, 32]),
    lambdas=st.lists(st.sampled_from([0.0, 1e-3, 0.2, 1.0, 1.05, 3.0]), min_size=6, max_size=6),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    kind=st.sampled_from(MASKS),
    seed=st.integers(0, 99),
)
def test_restriction_property(
    shape: tuple[int, int, int, int], d: int, lambdas: list[float], density: float, kind: str, seed: int
) -> None:
    """Rows written over the stock output equal the matrix form; unlisted rows stay bitwise stock."""
    b, h, sq, sk = shape
    q, k, v = qkv(seed, b, h, sq, sk, d)
    table = torch.tensor(lambdas).reshape(2, 3)
    g = generator(seed)
    row_mask = torch.rand(b, sq, generator=g) < density
    rows = rows_of(row_mask)
    row_class = torch.randint(0, 2, (b, rows.width), generator=g)
    key_class = torch.randint(0, 3, (b, sk), generator=g)
    lam = torch.ones(b, sq, sk, dtype=torch.float64)
    for i in range(b):
        for r, at in enumerate(row_mask[i].nonzero().flatten()):
            lam[i, at] = table.double()[row_class[i, r], key_class[i]]
    mask = stock_mask(kind, *shape)
    want = weights(q.double(), k.double(), mask, lam) @ v.double()
    stock = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    new = restricted_rows(q, k, v, rows, log_weights(row_class, key_class, table), attn_mask=mask)
    got = write_rows(stock, new, rows)
    if mask is not None and mask.is_floating_point() and 0.0 in lambdas:
        # a row left with keys at -1e4 alone: the float32 logit itself holds no more than three digits
        left = ((mask > -1e3).expand(b, h, sq, sk) & (lam > 0)[:, None]).any(-1) | (lam == 0).all(-1)[:, None]
        got, want = (x.masked_fill(~left[..., None], 0.0) for x in (got, want))
    assert_exact_to(got, want)
    kept = ~row_mask[:, None, :, None].expand_as(got)
    assert torch.equal(write_rows(stock, new, rows)[kept], stock[kept])
    assert new[~rows.valid[:, None, :, None].expand_as(new)].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cut_keys_weigh_exactly_nothing(dtype: torch.dtype) -> None:
    """Values of 6e4 behind cut keys would show through a weight of 1e-8."""
    b, h, sq, sk, d = 2, 2, 5, 16, 64
    q, k, v = (x.to(dtype) for x in qkv(2, b, h, sq, sk, d))
    q = q * 4  # logits of a trained model's spread
    key_class = torch.arange(sk).remainder(2).expand(b, sk)
    v = torch.where(key_class[:, None, :, None] == 0, 6e4, v)
    rows = rows_of(torch.ones(b, sq, dtype=torch.bool))
    row_class, table = torch.zeros(b, sq, dtype=torch.long), torch.tensor([[0.0, 0.5]])
    got = restricted_rows(q, k, v, rows, log_weights(row_class, key_class, table))
    want = weights(q.double(), k[:, :, 1::2].double()) @ v[:, :, 1::2].double()
    assert_exact_to(got, want, FP32 * 2 if dtype == torch.float32 else 0.04)


def test_a_row_cut_off_from_every_key_is_nan_never_stock() -> None:
    q, k, v = qkv(3, 2, 2, 4, 6, 8)
    mask = torch.tensor([[True, True, False, False], [False, True, False, False]])
    rows = rows_of(mask)
    table, key_class = torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.5, 1.0]]), torch.tensor([[0, 1] * 3] * 2)
    row_class = torch.tensor([[0, 1], [1, 0]])  # only row 0 of sample 0 is valid and cut; sample 1's slot 1 is padding
    got = restricted_rows(q, k, v, rows, log_weights(row_class, key_class, table))
    assert got.isnan().all(dim=(1, 3)).tolist() == [[True, False], [False, False]]
    assert got.isnan().any(dim=1).any(dim=-1).tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_padding_stays_finite_where_row_zero_is_hidden(kind: str) -> None:
    """Padding gathers row 0; a stock mask that hides all of row 0 must not turn it into NaN."""
    q, k, v = qkv(4, 2, 2, 4, 6, 8)
    mask: Tensor = torch.ones(2, 1, 4, 6, dtype=torch.bool)
    mask[:, :, 0] = False
    mask = mask if kind == "bool" else torch.where(mask, 0.0, -math.inf)
    row_mask = torch.tensor([[False, True, True, True], [False, False, True, False]])
    rows = rows_of(row_mask)
    got = restricted_rows(
        q, k, v, rows, torch.zeros(2, 3, 6).masked_fill(~rows.valid[..., None], math.nan), attn_mask=mask
    )
    assert got.isfinite().all()
    want = weights(q.double(), k.double()) @ v.double()
    for g, w in zip(valid_part(got, rows), listed(want, row_mask), strict=True):
        assert_exact_to(g, w)


def test_restriction_refuses_what_it_cannot_take() -> None:
    x, rows = torch.zeros(2, 2, 4, 8), rows_of(torch.ones(2, 4, dtype=torch.bool))
    bias = torch.zeros(2, 4, 4)
    with pytest.raises(ValueError, match="log_weight: expected shape"):
        restricted_rows(x, x, x, rows, bias[:, :3])
    for wrong in (
        torch.ones(4),
        torch.ones(3, 4),
        torch.ones(2, 4, 4, 5),
        torch.ones(4, 4, dtype=torch.long),
    ):
        with pytest.raises(ValueError, match="attn_mask: expected"):
            restricted_rows(x, x, x, rows, bias, attn_mask=wrong)
    with pytest.raises(ValueError, match="k: expected"):
        restricted_rows(x, x[:, :1], x, rows, bias)


@pytest.mark.parametrize("d", [32, 64, 128])
@pytest.mark.parametrize("kind", ["none", "bool-keys", "float-full"])
def test_bf16_is_no_worse_than_the_bf16_matrix_form(kind: str, d: int) -> None:
    b, h, sq, sk = 2, 3, 40, 72
    low = tuple(x.bfloat16() for x in qkv(d, b, h, sq, sk, d))
    high = tuple(x.double() for x in low)
    q, k, v = low
    mask = stock_mask(kind, b, h, sq, sk)
    if mask is not None and mask.is_floating_point():
        mask = mask.bfloat16()
    rows = rows_of(torch.ones(b, sq, dtype=torch.bool))
    row_class, key_class, lam = restriction(b, rows, sk)
    columns = torch.tensor([0.2, 0.4, 1.0, 1.05])[torch.randint(0, 4, (2, b, sk), generator=generator(1))][0]

    def both(form: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        return form(*low), form(*high)

    bias = log_weights(row_class, key_class, TABLE)
    restricted = both(lambda q, k, v: weights(q, k, mask, lam) @ v)
    assert_no_worse(restricted_rows(q, k, v, rows, bias, attn_mask=mask), *restricted)
    scaled = both(lambda q, k, v: weights(q, k, mask) * columns.to(q.dtype)[:, None, None] @ v)
    assert_no_worse(scaled_columns(q, k, v, columns, attn_mask=mask), *scaled)
    on = F.one_hot(torch.arange(sk) % 3, 3)
    mass = both(lambda q, k, v: weights(q, k, mask) @ on.to(q.dtype))
    assert_no_worse(mass_on(q, k, on, attn_mask=mask), *mass)
    inside, others, keys = contrast_masks(b, sq, sk)
    contrast = both(lambda q, k, v: contrast_reference(weights(q, k, mask).mean(1), inside, others, keys))
    assert_no_worse(flow_contrast(q, k, contrast_share(inside, others), keys, attn_mask=mask), *contrast)


@pytest.mark.filterwarnings("ignore:Flash attention")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["none", "bool-keys", "float-full"])
def test_every_operator_runs_on_the_fused_kernel_alone(kind: str, dtype: torch.dtype) -> None:
    """The math fallback, which materialises (Sq, Sk), is switched off: an operator that needs it raises."""
    b, h, sq, sk, d = 2, 2, 12, 18, 32
    q, k, v = (x.to(dtype) for x in qkv(0, b, h, sq, sk, d))
    mask = stock_mask(kind, b, h, sq, sk)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(dtype)
    rows = rows_of(row_masks(b, sq))
    row_class, key_class, _ = restriction(b, rows, sk)
    bias, columns = log_weights(row_class, key_class, TABLE), torch.rand(sk)
    inside, others, keys = contrast_masks(b, sq, sk)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        results = [
            restricted_rows(q, k, v, rows, bias, attn_mask=mask),
            redirected_rows(q, k, v, rows, slice(0, 4), k[:, :, 4:8], v[:, :, 4:8], bias, attn_mask=mask),
            mass_on(q, k, torch.eye(sk)[:, :4], attn_mask=mask),
            scaled_columns(q, k, v, columns, attn_mask=mask),
            flow_contrast(q, k, contrast_share(inside, others), keys, attn_mask=mask),
        ]
        with pytest.raises(RuntimeError):  # what this test rests on
            F.scaled_dot_product_attention(q, k, v[..., :8])
    for x in results:
        assert not x.isnan().any()
