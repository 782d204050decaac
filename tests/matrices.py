"""Attention as matrices: the materialised forms that the operators of ``uvr_core.ops`` avoid, and inputs for both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from uvr_core.ops.rows import Rows

FP32 = 2e-6  # allowed max abs error in float32
MASKS = ("none", "bool-keys", "bool-2d", "bool-3d", "bool-full", "float-keys", "float-full")
TABLE = torch.tensor([[0.0, 0.05, 1.0, 1.2], [0.3, 0.3, 1.0, 1.2], [1.0, 1.0, 1.0, 1.0]])


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


def valid_part(x: Tensor, rows: Rows) -> list[Tensor]:
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


def restriction(b: int, rows: Rows, sk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row and key classes for TABLE and the lambdas (B, R, Sk) that they mean."""
    row_class = torch.randint(0, 3, (b, rows.width), generator=generator(4))
    key_class = torch.randint(0, 4, (b, sk), generator=generator(5))
    key_class[:, 0] = 2
    lam = torch.stack([TABLE.double()[row_class[i]][:, key_class[i]] for i in range(b)])
    return row_class, key_class, lam


def reference_rows(
    q: Tensor, k: Tensor, v: Tensor, rows: Rows, lam: Tensor, mask: Tensor | None = None, **kw: Any
) -> list[Tensor]:
    """Per sample (H, n, D): full matrices with lambda written at the listed rows, then those rows."""
    full = torch.ones(q.shape[0], q.shape[2], k.shape[2], dtype=torch.float64)
    for b, n in enumerate(rows.counts):
        for r in range(n):
            full[b, rows.index[b, r]] = lam[b, r]
    out = weights(q, k, mask, full, **kw) @ v
    return [out[b][:, rows.index[b, :n]] for b, n in enumerate(rows.counts)]


def contrast_reference(a: Tensor, rows: Tensor, others: Tensor, keys: Sequence[slice]) -> Tensor:
    """(B, T) from weights a (B, Sq, Sk) averaged over heads."""
    a = torch.cat([a[..., span] for span in keys], -1)
    want = torch.zeros(len(a), a.shape[-1], dtype=torch.float64)
    for b in range(len(a)):
        for j in range(a.shape[-1]):
            if rows[b].any() and others[b].any() and a[b, rows[b], j].any():
                want[b, j] = a[b, rows[b], j].double().mean() / a[b, others[b], j].double().mean()
    return want


def contrast_masks(b: int, sq: int, sk: int) -> tuple[Tensor, Tensor, tuple[slice, slice]]:
    """Located rows, others, and the spans of the keys that are measured."""
    g = generator(5)
    output = (torch.arange(sq) < 1) | (torch.arange(sq) > 3)  # queries 1 to 3 are text, on neither side
    rows = (torch.rand(b, sq, generator=g) > 0.6) & output
    others = ~rows & output & (torch.rand(b, sq, generator=g) > 0.3)
    rows[0, 0], others[0, 0], rows[-1] = True, False, False
    others[0, 4:7] = False  # sample 0 has fewer rows, so that it is padded with its row 0, which is listed
    return rows, others, (slice(1, sk // 2), slice(sk - sk // 3, sk))
