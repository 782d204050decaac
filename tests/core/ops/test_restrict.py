"""Every operator of ``uvr_core.flow`` against the materialised form that it avoids, here in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from uvr_core import flow

FP32 = 2e-6  # allowed max abs error in float32
MASKS = ("none", "bool-keys", "bool-2d", "bool-3d", "bool-full", "float-keys", "float-full")


# -- inputs and the materialised forms -----------------------------------------------------------------------


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def qkv(seed: int, b: int, h: int, sq: int, sk: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    g = generator(seed)
    return tuple(torch.randn(b, h, n, d, generator=g) for n in (sq, sk, sk))  # type: ignore[return-value]


def stock_mask(kind: str, b: int, h: int, sq: int, sk: int) -> Tensor | None:
    """Padded-text and general masks; key 0 always stays, so that no stock row is empty."""
    shape = {
        "keys": (b, 1, 1, sk),
        "2d": (sq, sk),
        "3d": (h, sq, sk),
        "full": (b, h, sq, sk),
        "none": (1,),
    }[kind.split("-")[-1]]
    keep = torch.rand(shape, generator=generator(7)) > 0.3
    keep[..., 0] = True
    if kind == "none":
        return None
    return keep if kind.startswith("bool") else torch.where(keep, torch.randn(shape, generator=generator(8)), -1e4)


def weights(
    q: Tensor, k: Tensor, mask: Tensor | None = None, lam: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """(B, H, Sq, Sk) attention weights in the dtype of q, proportional to lam (B, Sq, Sk) * exp(logit)."""
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask.to(q.dtype)
    if lam is not None:
        logits = logits + lam.log().to(q.dtype)[:, None]
    return logits.softmax(-1)


def listed(x: Tensor, mask: Tensor) -> list[Tensor]:
    """Per sample, (H, n, D): the rows of x (B, H, Sq, D) that mask (B, Sq) names, found by Python."""
    return [x[b][:, [i for i in range(mask.shape[1]) if mask[b, i]]] for b in range(len(x))]


def valid_part(x: Tensor, rows: flow.Rows) -> list[Tensor]:
    return [x[b, :, : rows.counts[b]] for b in range(len(x))]


def assert_exact_to(got: Tensor, want: Tensor, bound: float = FP32) -> None:
    assert got.shape == want.shape
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.isinf(), want.isinf())
    error = (got.double() - want.double()).abs().nan_to_num()
    assert float(error.max() if error.numel() else 0.0) <= bound


def assert_no_worse(got: Tensor, materialised: Tensor, want: Tensor) -> None:
    """Error of a bf16 result against float64 is no more than that of the bf16 matrix form."""
    ours, theirs = (x.double() - want for x in (got, materialised))
    size = want.abs()
    assert theirs.abs().max() > 0
    assert ours.abs().max() <= 1.05 * theirs.abs().max() + 1e-3 * size.max()
    assert ours.abs().mean() <= 1.05 * theirs.abs().mean() + 1e-4 * size.mean()


def row_masks(b: int, sq: int) -> Tensor:
    """Per-sample rows: the last sample empty, row 0 listed in the first only."""
    mask = torch.rand(b, sq, generator=generator(3)) > 0.6
    mask[0, 0], mask[1:, 0], mask[-1] = True, False, False
    mask[0, sq // 2 :] = True  # sample 0 lists most, so that sample 1 is padded
    return mask


TABLE = torch.tensor([[0.0, 0.05, 1.0, 1.2], [0.3, 0.3, 1.0, 1.2], [1.0, 1.0, 1.0, 1.0]])


def restriction(b: int, rows: flow.Rows, sk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row and key classes for TABLE and the lambdas (B, R, Sk) that they mean."""
    row_class = torch.randint(0, 3, (b, rows.width), generator=generator(4))
    key_class = torch.randint(0, 4, (b, sk), generator=generator(5))
    key_class[:, 0] = 2
    lam = torch.stack([TABLE.double()[row_class[i]][:, key_class[i]] for i in range(b)])
    return row_class, key_class, lam


def reference_rows(
    q: Tensor, k: Tensor, v: Tensor, rows: flow.Rows, lam: Tensor, mask: Tensor | None = None, **kw: Any
) -> list[Tensor]:
    """Per sample (H, n, D): full matrices with lambda written at the listed rows, then those rows."""
    full = torch.ones(q.shape[0], q.shape[2], k.shape[2], dtype=torch.float64)
    for b, n in enumerate(rows.counts):
        for r in range(n):
            full[b, rows.index[b, r]] = lam[b, r]
    out = weights(q, k, mask, full, **kw) @ v
    return [out[b][:, rows.index[b, :n]] for b, n in enumerate(rows.counts)]


# -- rows ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1)))
def test_rows_of_lists_true_positions_in_order(mask: list[list[bool]]) -> None:
    rows = flow.rows_of(torch.tensor(mask))
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
        flow.rows_of(index)
    with pytest.raises(ValueError, match=r"Rows\.index"):
        flow.Rows(index.int(), valid, (3, 3))
    with pytest.raises(ValueError, match=r"Rows\.valid"):
        flow.Rows(index, valid[:, :2], (3, 3))
    with pytest.raises(ValueError, match=r"Rows\.counts"):
        flow.Rows(index, valid, (3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("blend", [False, True])
def test_write_rows_changes_valid_rows_only(dtype: torch.dtype, blend: bool) -> None:
    b, h, sq, d = 3, 2, 9, 8
    # transposed storage, as processors hand it over, with a NaN that must survive in the empty sample
    out = torch.randn(b, sq, h, d, generator=generator(0)).to(dtype).transpose(1, 2)
    out[-1, 0, 0, 0] = math.nan
    before = out.clone()
    mask = row_masks(b, sq)
    rows = flow.rows_of(mask)
    new, noise = (torch.randn(b, h, rows.width, d, generator=generator(s)).to(dtype) for s in (1, 2))
    alpha = torch.rand(b, rows.width, generator=generator(3))
    alpha[0, :2] = torch.tensor([0.0, 1.0])
    noise[0, :, 0], new[0, :, 1] = math.nan, math.inf  # alpha 0 and 1 must not touch the other side
    got = flow.write_rows(out, new, rows, **({"alpha": alpha, "noise": noise} if blend else {}))

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


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_sample_alone_is_taken_and_written_as_in_a_batch(dtype: torch.dtype, in_place: bool) -> None:
    out = torch.randn(3, 9, 2, 8, generator=generator(0)).to(dtype).transpose(1, 2)
    mask = row_masks(3, 9)
    both = flow.rows_of(mask)
    new = torch.randn(3, 2, both.width, 8, generator=generator(1)).to(dtype)
    taken = flow.take_rows(out, both)
    written = flow.write_rows(out.clone(), new, both, in_place=in_place)
    assert not torch.equal(written, out)
    for i, count in enumerate(both.counts):
        rows, alone = flow.rows_of(mask[i : i + 1]), out[i : i + 1].clone()
        assert torch.equal(flow.take_rows(alone, rows)[0], taken[i, :, :count])
        got = flow.write_rows(alone, new[i : i + 1, :, :count], rows, in_place=in_place)
        assert torch.equal(got[0], written[i])
        assert (got is alone) == (in_place or count == 0)


def test_write_rows_without_rows_returns_the_same_object() -> None:
    out = torch.randn(2, 3, 5, 4)
    rows = flow.rows_of(torch.zeros(2, 5, dtype=torch.bool))
    assert rows.width == 0
    assert flow.write_rows(out, out[:, :, :0], rows) is out
    assert flow.restricted_rows(out, out, out, rows, torch.zeros(2, 0, 5)).shape == (2, 3, 0, 4)
    nobody = torch.zeros(2, 0, dtype=torch.long)
    keys = torch.zeros(2, 5, dtype=torch.long)
    assert flow.restricted_rows_augmented(out, out, out, rows, nobody, keys, TABLE).shape == (2, 3, 0, 4)


def test_write_rows_padding_does_not_write_row_zero() -> None:
    """Sample 1 lists row 3 only and is padded with index 0: its row 0 stays, whatever the padding holds."""
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[0, :3], mask[1, 3] = True, True
    out, new = torch.zeros(2, 1, 4, 2), torch.full((2, 1, 3, 2), math.nan)
    new[0], new[1, :, 0] = 1.0, 2.0
    got = flow.write_rows(out, new, flow.rows_of(mask))
    assert got[:, 0, :, 0].tolist() == [[1, 1, 1, 0], [0, 0, 0, 2]]


def test_write_rows_refuses_mismatches() -> None:
    out, rows = torch.zeros(2, 1, 4, 2), flow.rows_of(torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="alpha and noise"):
        flow.write_rows(out, out, rows, alpha=torch.ones(2, 4))
    with pytest.raises(ValueError, match="new: expected shape"):
        flow.write_rows(out, out[:, :, :3], rows)
    with pytest.raises(ValueError, match="alpha: expected shape"):
        flow.write_rows(out, out, rows, alpha=torch.ones(2, 3), noise=out)


# -- noise ---------------------------------------------------------------------------------------------------


def test_matched_noise_is_per_sample_and_leaves_the_global_generator_alone() -> None:
    x = torch.randn(3, 2, 8, 4, generator=generator(0)) * 3 + 1
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[0, :8], mask[1, 4:7] = True, True
    state, gens = torch.get_rng_state(), [generator(s) for s in (10, 11, 12)]
    together = flow.matched_noise(x, flow.rows_of(mask), gens)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(gens[2].get_state(), generator(12).get_state())  # an empty sample draws nothing
    assert not torch.equal(gens[1].get_state(), generator(11).get_state())

    alone = flow.matched_noise(x[1:2, :, :3], flow.rows_of(mask[1:2]), generator(11))
    assert torch.equal(together[1:2, :, :3], alone)
    assert alone.abs().min() > 0
    assert (together[1, :, 3:] == 0).all()
    assert (together[2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matched_noise_has_the_statistics_of_the_valid_rows(dtype: torch.dtype) -> None:
    h, n, d = 2, 256, 64
    center, spread = torch.tensor([5.0, -3.0])[:, None, None], torch.tensor([0.5, 4.0])[:, None, None]
    x = torch.full((1, h, n + 50, d), 1e3, dtype=dtype)  # padding far away: it must not count
    x[0, :, :n] = (torch.randn(h, n, d, generator=generator(0)) * spread + center).to(dtype)
    rows = flow.rows_of(torch.arange(n + 50)[None] < n)
    rows = flow.Rows(F.pad(rows.index, (0, 50)), F.pad(rows.valid, (0, 50)), rows.counts)
    got = flow.matched_noise(x, rows, generator(1))[0, :, :n].float()
    error = 5 / math.sqrt(n * d)  # five standard errors
    assert ((got.mean((1, 2), keepdim=True) - center).abs() <= (error + 2e-3) * spread).all()
    assert ((got.std((1, 2), keepdim=True) / spread - 1).abs() <= error + 2e-3).all()

    plain = flow.matched_noise(x, rows, generator(1), mean=0.0, std=1.0)[0, :, :n]
    assert torch.equal(plain, torch.randn(h, n, d, generator=generator(1)).to(dtype))
    given_stats = flow.matched_noise(x, rows, generator(1), mean=center[None], std=spread[None])[0, :, :n]
    want = torch.randn(h, n, d, generator=generator(1)) * spread + center
    assert torch.equal(given_stats, want.to(dtype))


def test_matched_noise_wants_one_generator_per_sample() -> None:
    x, rows = torch.zeros(2, 1, 3, 2), flow.rows_of(torch.ones(2, 3, dtype=torch.bool))
    one = generator(0)
    for wrong in (None, one, [one], [one, one], [one, generator(1), generator(2)]):
        with pytest.raises(ValueError, match="generators: expected 2 distinct"):
            flow.matched_noise(x, rows, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"generators: expected torch\.Generators"):
        flow.matched_noise(x, rows, [one, None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="std: expected shape"):
        flow.matched_noise(x, rows, [one, generator(1)], std=torch.ones(2, 2, 1, 1))


# -- renormalised reweighting --------------------------------------------------------------------------------


def test_log_weights_looks_up_the_table() -> None:
    row_class, key_class = torch.tensor([[0, 1], [2, 0]]), torch.tensor([[3, 0, 1], [2, 2, 0]])
    got = flow.log_weights(row_class, key_class, TABLE)
    want = [[[TABLE[r, c].item() for c in key_class[b]] for r in row_class[b]] for b in range(2)]
    torch.testing.assert_close(got.exp(), torch.tensor(want))
    assert got[0, 0, 1] == -math.inf
    assert got.dtype == torch.float32


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf])
def test_a_lambda_that_is_no_weight_is_named(bad: float) -> None:
    table = TABLE.clone()
    table[1, 2] = bad
    x, rows = torch.zeros(1, 1, 3, 8), flow.rows_of(torch.ones(1, 3, dtype=torch.bool))
    zero = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"table\[1, 2\]: expected a finite lambda >= 0"):
        flow.log_weights(zero, zero, table)
    with pytest.raises(ValueError, match=r"table\[1, 2\]: expected a finite lambda >= 0"):
        flow.restricted_rows_augmented(x, x, x, rows, zero, zero, table)


@pytest.mark.parametrize(("row", "key"), [(-1, 0), (3, 0), (0, -1), (0, 4)])
def test_a_class_outside_the_table_does_not_wrap_round(row: int, key: int) -> None:
    x, rows = torch.zeros(1, 1, 1, 8), flow.rows_of(torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises((IndexError, RuntimeError)):
        flow.log_weights(torch.tensor([[row]]), torch.tensor([[key]]), TABLE)
    with pytest.raises((IndexError, RuntimeError)):
        flow.restricted_rows_augmented(x, x, x, rows, torch.tensor([[row]]), torch.tensor([[key]]), TABLE)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("d", [32, 64, 128])
def test_restricted_rows_equal_the_matrix_form(d: int, kind: str) -> None:
    b, h, sq, sk = 3, 2, 13, 21
    q, k, v = qkv(d, b, h, sq, sk, d)
    mask, rows = stock_mask(kind, b, h, sq, sk), flow.rows_of(row_masks(b, sq))
    row_class, key_class, lam = restriction(b, rows, sk)
    log_weight = flow.log_weights(row_class, key_class, TABLE)
    got = valid_part(flow.restricted_rows(q, k, v, rows, log_weight, attn_mask=mask), rows)
    want = reference_rows(q.double(), k.double(), v.double(), rows, lam, mask)
    assert rows.counts[0] > rows.counts[1] > rows.counts[2] == 0
    for g, w in zip(got, want, strict=True):
        assert_exact_to(g, w)
    if kind == "none":
        wide = flow.restricted_rows_augmented(q, k, v, rows, row_class, key_class, TABLE)
        for g, w in zip(valid_part(wide, rows), want, strict=True):
            assert_exact_to(g, w)


# -- other keys in place of own ones; projection -----------------------------------------------------------------


@pytest.mark.parametrize("own", [slice(0, 5), slice(16, 21), slice(4, 9), slice(3, 3)], ids=str)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("other_kind", ["none", "bool-keys", "float-full"])
def test_redirected_rows_equal_attention_over_the_joined_keys(own: slice, kind: str, other_kind: str) -> None:
    b, h, sq, sk, t, d = 3, 2, 13, 21, 7, 16
    q, k, v = qkv(2, b, h, sq, sk, d)
    _, other_k, other_v = qkv(3, b, h, sq, t, d)
    mask, rows = stock_mask(kind, b, h, sq, sk), flow.rows_of(row_masks(b, sq))
    other_mask = stock_mask(other_kind, b, h, rows.width, t)
    keys = sk - (own.stop - own.start) + t
    row_class, key_class, lam = restriction(b, rows, keys)
    log_weight = flow.log_weights(row_class, key_class, TABLE)
    got = flow.redirected_rows(
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
    rows = flow.rows_of(torch.ones(b, sq, dtype=torch.bool))
    bias = torch.zeros(b, sq, sk)
    same = flow.redirected_rows(q, k, v, rows, slice(2, 5), k[:, :, 2:5], v[:, :, 2:5], bias)
    assert torch.equal(same, flow.restricted_rows(q, k, v, rows, bias))
    nobody = flow.rows_of(torch.zeros(b, sq, dtype=torch.bool))
    gone = flow.redirected_rows(q, k, v, nobody, slice(0, 2), k[:, :, :1], v[:, :, :1], torch.zeros(b, 0, 8))
    assert gone.shape == (2, 2, 0, 8)


def test_redirected_rows_refuse_mismatches() -> None:
    q, k, v = qkv(1, 2, 2, 6, 9, 8)
    rows = flow.rows_of(torch.ones(2, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"own: expected a slice within 0\.\.9"):
        flow.redirected_rows(q, k, v, rows, slice(7, 12), k, v, torch.zeros(2, 6, 9))
    with pytest.raises(ValueError, match=r"log_weight: expected shape \(2, 6, 10\)"):
        flow.redirected_rows(q, k, v, rows, slice(0, 2), k[:, :, :3], v[:, :, :3], torch.zeros(2, 6, 9))
    with pytest.raises(ValueError, match="k: expected"):
        flow.redirected_rows(q, k, v, rows, slice(0, 2), k[:1], v[:1], torch.zeros(2, 6, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projected_rows_take_the_positive_score_away_and_nothing_else(dtype: torch.dtype) -> None:
    b, h, r, d = 3, 2, 40, 8
    x = torch.randn(b, h, r, d, generator=generator(0)).to(dtype)
    vector = torch.randn(h * d, generator=generator(1)) * 3
    offset = torch.randn(b, r, generator=generator(2)) * 5
    strength = torch.rand(b, r, generator=generator(3)) * 1.5
    strength[:, ::4] = 0.0
    before = x.clone()
    got = flow.projected_rows(x, vector, offset, strength)
    assert torch.equal(x, before)
    assert got.dtype == dtype
    rows, axis = x.transpose(1, 2).flatten(2).double(), vector.double()
    score = rows @ axis + offset.double()
    want = rows - (strength.double() * score.clamp(min=0) / (axis @ axis))[..., None] * axis
    out = got.transpose(1, 2).flatten(2)
    torch.testing.assert_close(out.double(), want, rtol=0, atol=2e-6 if dtype == torch.float32 else 0.05)
    assert torch.equal(
        out[(score <= 0) | (strength == 0)], x.transpose(1, 2).flatten(2)[(score <= 0) | (strength == 0)]
    )
    if dtype == torch.float32:
        left = out.double() @ axis + offset.double()
        torch.testing.assert_close(left, torch.where(score > 0, (1 - strength) * score, score), rtol=0, atol=1e-4)


def test_projecting_on_nothing_changes_nothing() -> None:
    x = torch.randn(1, 2, 3, 4, generator=generator(0))
    ones = torch.ones(1, 3)
    assert torch.equal(flow.projected_rows(x, torch.zeros(8), ones, ones), x)
    with pytest.raises(ValueError, match=r"vector: expected shape \(8,\)"):
        flow.projected_rows(x, torch.zeros(16), ones, ones)
    with pytest.raises(ValueError, match="offset: expected shape"):
        flow.projected_rows(x, torch.zeros(8), torch.ones(1, 1), ones)


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.5])
def test_restricted_rows_honour_the_scale(scale: float) -> None:
    b, h, sq, sk, d = 2, 2, 6, 9, 8
    q, k, v = qkv(1, b, h, sq, sk, d)
    rows = flow.rows_of(torch.ones(b, sq, dtype=torch.bool))
    row_class, key_class, lam = restriction(b, rows, sk)
    want = torch.stack(reference_rows(q.double(), k.double(), v.double(), rows, lam, scale=scale))
    log_weight = flow.log_weights(row_class, key_class, TABLE)
    assert_exact_to(flow.restricted_rows(q, k, v, rows, log_weight, scale=scale), want, 5e-6)
    wide = flow.restricted_rows_augmented(q, k, v, rows, row_class, key_class, TABLE, scale=scale)
    assert_exact_to(wide, want, 5e-6)


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
    """Both forms, written over the stock output, equal the matrix form; unlisted rows stay bitwise stock."""
    b, h, sq, sk = shape
    q, k, v = qkv(seed, b, h, sq, sk, d)
    table = torch.tensor(lambdas).reshape(2, 3)
    g = generator(seed)
    row_mask = torch.rand(b, sq, generator=g) < density
    rows = flow.rows_of(row_mask)
    row_class = torch.randint(0, 2, (b, rows.width), generator=g)
    key_class = torch.randint(0, 3, (b, sk), generator=g)
    lam = torch.ones(b, sq, sk, dtype=torch.float64)
    for i in range(b):
        for r, at in enumerate(row_mask[i].nonzero().flatten()):
            lam[i, at] = table.double()[row_class[i, r], key_class[i]]
    for form in ("bias", "augmented"):
        mask = stock_mask(kind, *shape) if form == "bias" else None
        want = weights(q.double(), k.double(), mask, lam) @ v.double()
        stock = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if form == "bias":
            log_weight = flow.log_weights(row_class, key_class, table)
            new = flow.restricted_rows(q, k, v, rows, log_weight, attn_mask=mask)
        else:
            new = flow.restricted_rows_augmented(q, k, v, rows, row_class, key_class, table)
        got = flow.write_rows(stock, new, rows)
        if mask is not None and mask.is_floating_point() and 0.0 in lambdas:
            # a row left with keys at -1e4 alone: the float32 logit itself holds no more than three digits
            left = ((mask > -1e3).expand(b, h, sq, sk) & (lam > 0)[:, None]).any(-1) | (lam == 0).all(-1)[:, None]
            got, want = (x.masked_fill(~left[..., None], 0.0) for x in (got, want))
        assert_exact_to(got, want)
        kept = ~row_mask[:, None, :, None].expand_as(got)
        assert torch.equal(flow.write_rows(stock, new, rows)[kept], stock[kept])
        assert new[~rows.valid[:, None, :, None].expand_as(new)].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["bias", "augmented"])
def test_cut_keys_weigh_exactly_nothing(form: str, dtype: torch.dtype) -> None:
    """Values of 6e4 behind cut keys would show through a weight of 1e-8."""
    b, h, sq, sk, d = 2, 2, 5, 16, 64
    q, k, v = (x.to(dtype) for x in qkv(2, b, h, sq, sk, d))
    q = q * 4  # logits of a trained model's spread
    key_class = torch.arange(sk).remainder(2).expand(b, sk)
    v = torch.where(key_class[:, None, :, None] == 0, 6e4, v)
    rows = flow.rows_of(torch.ones(b, sq, dtype=torch.bool))
    row_class, table = torch.zeros(b, sq, dtype=torch.long), torch.tensor([[0.0, 0.5]])
    if form == "bias":
        got = flow.restricted_rows(q, k, v, rows, flow.log_weights(row_class, key_class, table))
    else:
        got = flow.restricted_rows_augmented(q, k, v, rows, row_class, key_class, table)
    want = weights(q.double(), k[:, :, 1::2].double()) @ v[:, :, 1::2].double()
    assert_exact_to(got, want, FP32 * 2 if dtype == torch.float32 else 0.04)


def test_augmented_lambdas_survive_sixteen_bits() -> None:
    """With zero logits the output is lambda's share itself; log lambda in one bf16 number is up to 1.5% off."""
    lambdas = torch.logspace(-3, -0.1, 40)
    q = torch.zeros(1, 1, 40, 64, dtype=torch.bfloat16)
    k, v = torch.zeros(1, 1, 2, 64, dtype=torch.bfloat16), torch.zeros(1, 1, 2, 64, dtype=torch.bfloat16)
    v[:, :, 0] = 1.0
    rows = flow.rows_of(torch.ones(1, 40, dtype=torch.bool))
    table = torch.stack([lambdas, torch.ones(40)], dim=1)
    got = flow.restricted_rows_augmented(q, k, v, rows, torch.arange(40)[None], torch.tensor([[0, 1]]), table)
    share = (lambdas / (1 + lambdas))[:, None]
    assert ((got[0, 0].float() - share).abs() / share).max() < 6e-3  # the weight and the output, rounded to bf16


@pytest.mark.parametrize("form", ["bias", "augmented"])
def test_a_row_cut_off_from_every_key_is_nan_never_stock(form: str) -> None:
    q, k, v = qkv(3, 2, 2, 4, 6, 8)
    mask = torch.tensor([[True, True, False, False], [False, True, False, False]])
    rows = flow.rows_of(mask)
    table, key_class = torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.5, 1.0]]), torch.tensor([[0, 1] * 3] * 2)
    row_class = torch.tensor([[0, 1], [1, 0]])  # only row 0 of sample 0 is valid and cut; sample 1's slot 1 is padding
    if form == "bias":
        got = flow.restricted_rows(q, k, v, rows, flow.log_weights(row_class, key_class, table))
    else:
        got = flow.restricted_rows_augmented(q, k, v, rows, row_class, key_class, table)
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
    rows = flow.rows_of(row_mask)
    got = flow.restricted_rows(
        q, k, v, rows, torch.zeros(2, 3, 6).masked_fill(~rows.valid[..., None], math.nan), attn_mask=mask
    )
    assert got.isfinite().all()
    want = weights(q.double(), k.double()) @ v.double()
    for g, w in zip(valid_part(got, rows), listed(want, row_mask), strict=True):
        assert_exact_to(g, w)


def test_restriction_refuses_what_it_cannot_take() -> None:
    x, rows = torch.zeros(2, 2, 4, 8), flow.rows_of(torch.ones(2, 4, dtype=torch.bool))
    zero, bias = torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4, 4)
    with pytest.raises(ValueError, match="attn_mask: this form takes none"):
        flow.restricted_rows_augmented(x, x, x, rows, zero, zero, TABLE, attn_mask=bias)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale: expected > 0"):
        flow.restricted_rows_augmented(x, x, x, rows, zero, zero, TABLE, scale=0.0)
    with pytest.raises(ValueError, match="log_weight: expected shape"):
        flow.restricted_rows(x, x, x, rows, bias[:, :3])
    for wrong in (
        torch.ones(4),
        torch.ones(3, 4),
        torch.ones(2, 4, 4, 5),
        torch.ones(4, 4, dtype=torch.long),
    ):
        with pytest.raises(ValueError, match="attn_mask: expected"):
            flow.restricted_rows(x, x, x, rows, bias, attn_mask=wrong)
    with pytest.raises(ValueError, match="k: expected"):
        flow.restricted_rows(x, x[:, :1], x, rows, bias)


# -- column scaling ------------------------------------------------------------------------------------------


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
    assert_exact_to(flow.scaled_columns(q, k, v, columns, attn_mask=mask), want)
    want = a * columns.double()[1] @ v.double()
    assert_exact_to(flow.scaled_columns(q, k, v, columns[1], attn_mask=mask), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["none", "bool-keys", "float-full"])
def test_neutral_column_scales_are_bitwise_stock(kind: str, dtype: torch.dtype) -> None:
    b, h, sq, sk, d = 2, 3, 70, 90, 64
    q, k, v = (x.to(dtype).transpose(1, 2).contiguous().transpose(1, 2) for x in qkv(0, b, h, sq, sk, d))
    mask = stock_mask(kind, b, h, sq, sk)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(dtype)
    stock = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.equal(flow.scaled_columns(q, k, v, torch.ones(sk), attn_mask=mask), stock)
    group = torch.randint(0, 2, (b, sq), generator=generator(1))
    columns = torch.stack([torch.ones(sk), torch.full((sk,), 0.2)])
    got = flow.scaled_columns_by_group(q, k, v, group, columns, attn_mask=mask)
    neutral = (group == 0)[:, None, :, None].expand_as(got)
    assert torch.equal(got[neutral], stock[neutral])
    assert not torch.equal(got[~neutral], stock[~neutral])


def test_column_scales_round_once_in_bf16() -> None:
    q, k, v = (x.bfloat16() for x in qkv(0, 1, 2, 1, 1, 64))  # one key: the output is its value
    want = (v.double() * torch.tensor(0.2).double()).bfloat16()
    assert torch.equal(flow.scaled_columns(q, k, v, torch.tensor([0.2])), want)


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (3, 3, 8, 9))),
    groups=st.integers(1, 3),
    scales=st.lists(st.sampled_from([0.0, 0.2, 1.0, 1.05]), min_size=27, max_size=27),
    per_sample=st.tuples(st.booleans(), st.booleans()),
    kind=st.sampled_from(MASKS),
    seed=st.integers(0, 99),
)
def test_scaled_columns_by_group_property(
    shape: tuple[int, int, int, int],
    groups: int,
    scales: list[float],
    per_sample: tuple[bool, bool],
    kind: str,
    seed: int,
) -> None:
    b, h, sq, sk = shape
    q, k, v = qkv(seed, b, h, sq, sk, 16)
    mask = stock_mask(kind, *shape)
    group = torch.randint(0, groups, (b, sq) if per_sample[0] else (sq,), generator=generator(seed))
    columns = torch.tensor(scales)[: groups * sk].reshape(groups, sk)
    if per_sample[1]:
        columns = torch.stack([columns.roll(i, 1) for i in range(b)])
    a = weights(q.double(), k.double(), mask)
    for i in range(b):
        for j in range(sq):
            g = group[i, j] if per_sample[0] else group[j]
            a[i, :, j] *= (columns[i, g] if per_sample[1] else columns[g]).double()
    want = a @ v.double()
    assert_exact_to(flow.scaled_columns_by_group(q, k, v, group, columns, attn_mask=mask), want)
    if not per_sample[0]:
        split = flow.scaled_columns_by_group(q, k, v, group, columns, attn_mask=mask, split=True)
        assert_exact_to(split, want)


@pytest.mark.parametrize("split", [False, True])
def test_a_query_of_no_group_is_nan(split: bool) -> None:
    q, k, v = qkv(0, 2, 2, 3, 4, 8)
    got = flow.scaled_columns_by_group(q, k, v, torch.tensor([0, -1, 2]), torch.ones(2, 4), split=split)
    assert got.isnan().all(dim=(0, 1, 3)).tolist() == [False, True, True]
    assert got[:, :, 0].isfinite().all()


def test_column_scaling_refuses_mismatches() -> None:
    x, group = torch.zeros(2, 2, 4, 8), torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="column_scale: expected shape"):
        flow.scaled_columns(x, x, x, torch.ones(5))
    with pytest.raises(ValueError, match="column_scale: expected shape"):
        flow.scaled_columns_by_group(x, x, x, group, torch.ones(0, 4))
    with pytest.raises(ValueError, match="query_group: split needs one"):
        flow.scaled_columns_by_group(x, x, x, group, torch.ones(1, 4), split=True)


# -- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patch_scores_are_the_mean_over_anchors(dtype: torch.dtype) -> None:
    b, n, c = 2, 6, 3072
    out = torch.randn(b, n, c, generator=generator(0)).to(dtype)
    anchors = torch.randn(5, c, generator=generator(1)).to(dtype) + 1
    each = torch.stack([(out.double() * a.double()).sum(-1) for a in anchors]).mean(0)
    got = flow.patch_scores(out, anchors)
    assert got.dtype == torch.float32
    assert_exact_to(got, each / c)
    assert_exact_to(flow.patch_scores(out, anchors, normaliser=math.sqrt(c)) / math.sqrt(c), each / c)
    assert_exact_to(flow.patch_scores(out, anchors[2]), (out.double() @ anchors[2].double()) / c)
    for wrong in (anchors[:, 1:], anchors[:0], anchors[None]):
        with pytest.raises(ValueError, match="anchor: expected"):
            flow.patch_scores(out, wrong)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="normaliser"):
            flow.patch_scores(out, anchors, normaliser=bad)


@pytest.mark.parametrize("kind", ["none", "bool-keys", "bool-2d", "float-full"])
@pytest.mark.parametrize("m", [0, 3, 32, 70])  # none, fewer than, exactly and more than two times the head size
def test_mass_on_equals_the_matrix_form(m: int, kind: str) -> None:
    b, h, sq, sk, d = 2, 2, 7, 80, 32
    q, k, _ = qkv(m, b, h, sq, sk, d)
    mask = stock_mask(kind, b, h, sq, sk)
    key_weight = torch.rand(b, sk, m, generator=generator(2))
    a = weights(q.double(), k.double(), mask)
    assert_exact_to(flow.mass_on(q, k, key_weight, attn_mask=mask), a @ key_weight.double()[:, None])
    on = key_weight[0] > 0.5
    assert_exact_to(
        flow.mass_on(q, k, on, attn_mask=mask, scale=0.1),
        weights(q.double(), k.double(), mask, scale=0.1) @ on.double(),
    )
    with pytest.raises(ValueError, match="key_weight: expected"):
        flow.mass_on(q, k, key_weight[:, 1:])


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (3, 3, 8, 12))),
    n_roles=st.integers(1, 4),
    shared=st.booleans(),
    kind=st.sampled_from(MASKS),
    seed=st.integers(0, 99),
)
def test_role_flow_property(shape: tuple[int, int, int, int], n_roles: int, shared: bool, kind: str, seed: int) -> None:
    b, h, sq, sk = shape
    q, k, _ = qkv(seed, b, h, sq, sk, 16)
    mask, g = stock_mask(kind, *shape), generator(seed)
    query_roles, key_roles = (torch.randint(-1, n_roles, (b, n), generator=g) for n in (sq, sk))
    if shared:
        query_roles, key_roles = query_roles[0], key_roles[0]
    a = weights(q.double(), k.double(), mask).mean(1)
    want = torch.zeros(b, n_roles, n_roles, dtype=torch.float64)
    for i in range(b):
        for x in range(n_roles):
            for y in range(n_roles):
                rows = (query_roles if shared else query_roles[i]) == x
                cols = (key_roles if shared else key_roles[i]) == y
                if rows.any() and cols.any():
                    want[i, x, y] = a[i][rows][:, cols].mean()
    got = flow.role_flow(q, k, query_roles, key_roles, n_roles, attn_mask=mask)
    assert got.dtype == torch.float32
    assert_exact_to(got, want)


def contrast_reference(a: Tensor, rows: Tensor, others: Tensor, keys: Tensor) -> Tensor:
    """(B, Sk) from weights a (B, Sq, Sk) averaged over heads."""
    want = torch.zeros(keys.shape, dtype=torch.float64)
    for b in range(len(a)):
        for j in range(keys.shape[1]):
            if keys[b, j] and rows[b].any() and others[b].any() and a[b, rows[b], j].any():
                want[b, j] = a[b, rows[b], j].double().mean() / a[b, others[b], j].double().mean()
    return want


def contrast_masks(b: int, sq: int, sk: int) -> tuple[Tensor, Tensor, Tensor]:
    g = generator(5)
    output = (torch.arange(sq) < 1) | (torch.arange(sq) > 3)  # queries 1 to 3 are text, on neither side
    rows = (torch.rand(b, sq, generator=g) > 0.6) & output
    others = ~rows & output & (torch.rand(b, sq, generator=g) > 0.3)
    rows[0, 0], others[0, 0], rows[-1] = True, False, False
    others[0, 4:7] = False  # sample 0 has fewer rows, so that it is padded with its row 0, which is listed
    keys = torch.rand(b, sk, generator=g) > 0.2
    keys[0, sk // 2 :] = False  # samples differ in their number of text tokens
    keys[0, 0] = False  # padding slots point at key 0: it must stay 0
    return rows, others, keys


@pytest.mark.parametrize("kind", ["none", "bool-keys", "bool-2d", "float-full"])
def test_token_contrast_equals_the_matrix_form(kind: str) -> None:
    b, h, sq, sk, d = 3, 2, 14, 90, 32  # up to 90 text tokens over a head size of 32: three chunks
    q, k, _ = qkv(1, b, h, sq, sk, d)
    mask = stock_mask(kind, b, h, sq, sk)
    rows, others, keys = contrast_masks(b, sq, sk)
    got = flow.token_contrast(q, k, rows, others, keys, attn_mask=mask)
    want = contrast_reference(weights(q.double(), k.double(), mask).mean(1), rows, others, keys)
    size = want.clamp(min=1).nan_to_num(posinf=1.0)  # a ratio: the error is relative to its size
    assert_exact_to(got / size, want / size)
    assert (want[:2] > 1.5).any()
    listed_rows = (rows | others).sum(1)
    assert listed_rows[0] < listed_rows.max()
    assert (got[~keys] == 0).all()
    assert (got[-1] == 0).all()


def test_token_contrast_edges() -> None:
    q, k, _ = qkv(1, 1, 2, 4, 5, 16)
    rows, others = torch.tensor([[True, True, False, False]]), torch.tensor([[False, False, True, False]])
    keys, none = torch.ones(1, 5, dtype=torch.bool), torch.zeros(1, 5, dtype=torch.bool)
    hidden = torch.ones(4, 5, dtype=torch.bool)
    hidden[:, 1] = False  # nobody sees key 1
    hidden[2, 2] = False  # the others do not see key 2
    got = flow.token_contrast(q, k, rows, others, keys, attn_mask=hidden)[0]
    assert got[1] == 0
    assert got[2] == math.inf
    assert got[[0, 3, 4]].isfinite().all()
    assert (flow.token_contrast(q, k, rows, others, none) == 0).all()
    assert (flow.token_contrast(q, k, rows, none[:, :4], keys) == 0).all()
    with pytest.raises(ValueError, match="other_mask: expected bool"):
        flow.token_contrast(q, k, rows, others.long(), keys)


# -- bf16, and the kernels -----------------------------------------------------------------------------------


def mean_by_role(a: Tensor, query_roles: Tensor, key_roles: Tensor) -> Tensor:
    return torch.stack(
        [
            torch.stack([a[:, :, query_roles == x][..., key_roles == y].mean((1, 2, 3)) for y in range(3)], -1)
            for x in range(3)
        ],
        -2,
    )


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
    rows = flow.rows_of(torch.ones(b, sq, dtype=torch.bool))
    row_class, key_class, lam = restriction(b, rows, sk)
    columns = torch.tensor([0.2, 0.4, 1.0, 1.05])[torch.randint(0, 4, (2, b, sk), generator=generator(1))]
    group = torch.arange(sq) % 2
    per_query = columns[group].transpose(0, 1)  # (B, Sq, Sk)
    query_roles, key_roles = torch.arange(sq) % 3, torch.arange(sk) % 3

    def both(form: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        return form(*low), form(*high)

    bias = flow.log_weights(row_class, key_class, TABLE)
    restricted = both(lambda q, k, v: weights(q, k, mask, lam) @ v)
    assert_no_worse(flow.restricted_rows(q, k, v, rows, bias, attn_mask=mask), *restricted)
    if mask is None:
        assert_no_worse(flow.restricted_rows_augmented(q, k, v, rows, row_class, key_class, TABLE), *restricted)
    scaled = both(lambda q, k, v: weights(q, k, mask) * columns[0].to(q.dtype)[:, None, None] @ v)
    assert_no_worse(flow.scaled_columns(q, k, v, columns[0], attn_mask=mask), *scaled)
    grouped = both(lambda q, k, v: weights(q, k, mask) * per_query.to(q.dtype)[:, None] @ v)
    by_group = flow.scaled_columns_by_group(q, k, v, group, columns.transpose(0, 1), attn_mask=mask)
    assert_no_worse(by_group, *grouped)
    on = F.one_hot(key_roles, 3)
    mass = both(lambda q, k, v: weights(q, k, mask) @ on.to(q.dtype))
    assert_no_worse(flow.mass_on(q, k, on, attn_mask=mask), *mass)
    roles = both(lambda q, k, v: mean_by_role(weights(q, k, mask), query_roles, key_roles))
    assert_no_worse(flow.role_flow(q, k, query_roles, key_roles, 3, attn_mask=mask), *roles)
    masks = contrast_masks(b, sq, sk)
    contrast = both(lambda q, k, v: contrast_reference(weights(q, k, mask).mean(1), *masks))
    assert_no_worse(flow.token_contrast(q, k, *masks, attn_mask=mask), *contrast)


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
    rows = flow.rows_of(row_masks(b, sq))
    row_class, key_class, _ = restriction(b, rows, sk)
    bias, group = flow.log_weights(row_class, key_class, TABLE), torch.arange(sq) % 2
    columns, roles = torch.rand(2, sk), torch.arange(sq) % 3
    contrast = contrast_masks(b, sq, sk)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        results = [
            flow.restricted_rows(q, k, v, rows, bias, attn_mask=mask),
            flow.restricted_rows_augmented(q, k, v, rows, row_class, key_class, TABLE),
            flow.redirected_rows(q, k, v, rows, slice(0, 4), k[:, :, 4:8], v[:, :, 4:8], bias, attn_mask=mask),
            flow.mass_on(q, k, torch.eye(sk)[:, :4], attn_mask=mask),
            flow.scaled_columns(q, k, v, columns[0], attn_mask=mask),
            flow.scaled_columns_by_group(q, k, v, group, columns, attn_mask=mask),
            flow.scaled_columns_by_group(q, k, v, group, columns, attn_mask=mask, split=True),
            flow.role_flow(q, k, roles, torch.arange(sk) % 3, 3, attn_mask=mask),
            flow.token_contrast(q, k, *contrast, attn_mask=mask),
        ]
        with pytest.raises(RuntimeError):  # what this test rests on
            F.scaled_dot_product_attention(q, k, v[..., :8])
    for x in results:
        assert not x.isnan().any()
