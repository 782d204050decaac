"""Rows of attention under reweighted keys, renormalised."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .attn_mask import additive, as_4d, mask_rows
from .checks import check_attention, check_shape, described
from .rows import Rows, take_rows


def log_weights(row_class: Tensor, key_class: Tensor, table: Tensor) -> Tensor:
    """Look up log lambda(i, j) from a small table of classes.

    UVR, arXiv 2606.06875, eq. restriction: lambda by (row, key) class, e.g. rows core / ring, keys safe /
    other.

    Args:
        row_class: (B, R) int64 in 0..n_row_classes-1; padding slots too need a class (any).
        key_class: (B, Sk) int64 in 0..n_key_classes-1.
        table: (n_row_classes, n_key_classes), lambdas, finite and >= 0; 0 = cut, 1 = stock. Keep it on the
            CPU: its values are checked, which on a device costs a host sync.

    Returns:
        (B, R, Sk) float32 (float64 if ``table`` is), natural log, range [-inf, inf).

    Raises:
        ValueError: a lambda is negative, NaN or infinite (it is named), or shapes disagree.
        IndexError, RuntimeError: a class is not in the table (on the CPU; a device assert elsewhere).
    """
    log_table = _log_table(table).to(row_class.device)
    if row_class.dim() != 2 or key_class.dim() != 2 or row_class.shape[0] != key_class.shape[0]:
        raise ValueError(
            f"row_class, key_class: expected (B, R), (B, Sk), got {described(row_class)}, {described(key_class)}"
        )
    per_class = F.embedding(key_class, log_table.T).mT  # (B, n_row_classes, Sk); unlike [], takes no negative index
    return torch.stack([F.embedding(rows, weight) for rows, weight in zip(row_class, per_class, strict=True)])


def _log_table(table: Tensor) -> Tensor:
    if table.dim() != 2 or table.numel() == 0 or not table.is_floating_point():
        raise ValueError(f"table: expected (n_row_classes, n_key_classes) floating, got {described(table)}")
    values = table.numpy(force=True)
    bad = np.argwhere(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
        r, c = bad[0].tolist()
        raise ValueError(f"table[{r}, {c}]: expected a finite lambda >= 0, got {values[r, c]}")
    return table.to(torch.promote_types(table.dtype, torch.float32)).log()


def restricted_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Rows,
    log_weight: Tensor,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    seen: bool = False,
) -> Tensor:
    """Attention of the listed query rows only, with weights proportional to ``lambda * exp(logit)``,
    renormalised.

    UVR, arXiv 2606.06875, eq. restriction: the inner sum. One fused call of R queries, no host sync. The bias
    reaches the kernel in ``q.dtype``, as the mask kernels require.

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Sk, D).
        v: (B, H, Sk, D).
        rows: the rows to compute.
        log_weight: (B, R, Sk), or (B, 1, Sk) for all rows alike; log lambda shared by all heads, range
            [-inf, inf), -inf = cut (see :func:`log_weights`).
        attn_mask: the mask of the stock call; it is gathered at the rows and added.
        scale: factor of the logits, D**-0.5 if None.
        seen: the caller knows that every valid row sees a key, so that nothing need be asked for the last sentence
            below.

    Returns:
        (B, H, R, D), dtype of ``q``. Padding slots hold something meaningless; it is finite for finite q, k,
        v and a ``log_weight`` per row. A valid row of which every key is cut has no answer: that is the
        caller's error, and the row is NaN on every kernel.

    Raises:
        ValueError: shapes disagree or ``attn_mask`` does not broadcast.
    """
    check_attention(q, k, v)
    batch = q.shape[0]
    check_shape("rows.index", rows.index, (batch, rows.width))
    alike = log_weight.dim() == 3 and log_weight.shape[1] == 1
    check_shape("log_weight", log_weight, (batch, 1 if alike else rows.width, k.shape[2]))
    picked = take_rows(q, rows)
    if rows.width == 0:
        return picked
    mask = None if attn_mask is None else mask_rows(as_4d(attn_mask, q, k), rows.index)
    return _attend_biased(picked, k, v, rows, log_weight, mask, scale, seen)


def redirected_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Rows,
    replaced: slice,
    other_k: Tensor,
    other_v: Tensor,
    log_weight: Tensor,
    *,
    attn_mask: Tensor | None = None,
    other_mask: Tensor | None = None,
    scale: float | None = None,
    seen: bool = False,
) -> Tensor:
    """:func:`restricted_rows` with one span of the keys replaced by keys and values from elsewhere.

    ``O(i) = sum_j softmax_j(q_i . k'_j * scale + log lambda(i, j)) v'_j``, with k', v' the call's own outside of
    ``replaced`` and the others' in its place, q the call's own. One fused call for each half of the heads.

    Args:
        q: (B, H, Sq, D); k and v: (B, H, Sk, D).
        rows: the rows to compute.
        replaced: the keys to replace, a slice with start and stop in 0..Sk.
        other_k, other_v: (B, H, T, D), T >= 0; it need not be the length of ``replaced``.
        log_weight: (B, R, Sk'), Sk' = Sk - len(replaced) + T, as for :func:`restricted_rows`.
        attn_mask: the mask of the stock call; what it says of ``replaced`` is dropped.
        other_mask: (B|1, H|1, R|1, T|1), bool or additive float, for the other keys; None = all are seen.
        scale: factor of the logits, D**-0.5 if None.
        seen: as for :func:`restricted_rows`.

    Returns:
        (B, H, R, D), dtype of ``q``, padding and wholly cut rows as in :func:`restricted_rows`.

    Raises:
        ValueError: shapes disagree or a mask does not broadcast.
    """
    check_attention(q, k, v)
    check_attention(q, other_k, other_v)
    keys = k.shape[2]
    if not 0 <= replaced.start <= replaced.stop <= keys:
        raise ValueError(f"replaced: expected a slice within 0..{keys}, got {replaced}")
    check_shape("rows.index", rows.index, (q.shape[0], rows.width))
    check_shape(
        "log_weight", log_weight, (q.shape[0], rows.width, keys - (replaced.stop - replaced.start) + other_k.shape[2])
    )
    picked = take_rows(q, rows)
    if rows.width == 0:
        return picked
    stock = None if attn_mask is None else mask_rows(as_4d(attn_mask, q, k), rows.index)
    other = None if other_mask is None else as_4d(other_mask, picked, other_k)
    mask = _joined_mask(stock, other, replaced, keys, other_k.shape[2])

    def attend(heads: slice) -> Tensor:
        new_k, new_v = (_joined(x[:, heads], y[:, heads], replaced, 2) for x, y in ((k, other_k), (v, other_v)))
        hidden = mask if mask is None or mask.shape[1] == 1 else mask[:, heads]
        return _attend_biased(picked[:, heads], new_k, new_v, rows, log_weight, hidden, scale, seen)

    half = (q.shape[1] + 1) // 2  # of the heads at a time: the joined keys and values are copies
    return torch.cat([attend(slice(start, start + half)) for start in range(0, q.shape[1], half)], 1)


def _joined(whole: Tensor, other: Tensor, replaced: slice, dim: int) -> Tensor:
    """``whole`` with its part ``replaced`` of one dimension taken by ``other``."""
    before, after = (
        whole.narrow(dim, 0, replaced.start),
        whole.narrow(dim, replaced.stop, whole.shape[dim] - replaced.stop),
    )
    return torch.cat([before, other, after], dim)


def _joined_mask(
    mask: Tensor | None, other: Tensor | None, replaced: slice, keys: int, other_keys: int
) -> Tensor | None:
    """Masks (B|1, H|1, R|1, Sk|1) and (B|1, H|1, R|1, T|1) as one additive mask over the joined keys."""
    if mask is None and other is None:
        return None
    seen = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=(other if mask is None else mask).device)  # type: ignore[union-attr]
    mask, other = seen if mask is None else mask, seen if other is None else other
    lead = torch.broadcast_shapes(mask.shape[:3], other.shape[:3])
    return _joined(additive(mask).expand(*lead, keys), additive(other).expand(*lead, other_keys), replaced, 3)


def _attend_biased(
    picked: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Rows,
    log_weight: Tensor,
    mask: Tensor | None,
    scale: float | None,
    seen: bool,
) -> Tensor:
    """Attention of picked rows (B, H, R, D) under log_weight (B, R|1, Sk) and a mask (B|1, H|1, R|1, Sk|1)."""
    bias = log_weight[:, None].to(torch.promote_types(picked.dtype, torch.float32))  # (B, 1, R|1, Sk)
    if mask is not None:
        bias = bias.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else bias + mask
    if rows.padded and bias.shape[2] == rows.width:
        bias = bias.masked_fill(~rows.valid[:, None, :, None], 0.0)
    bias = bias.to(picked.dtype)
    new = F.scaled_dot_product_attention(picked, k, v, attn_mask=bias, scale=scale)
    if seen:
        return new
    cut = bias.amax(dim=-1, keepdim=True) == -math.inf  # (B, H|1, R, 1); padding rows are all 0
    return (new.masked_fill if new.requires_grad else new.masked_fill_)(cut, math.nan)
