"""Readings of attention: patch scores, attention mass, flow contrast."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .attn_mask import additive, as_4d, mask_keys
from .checks import check_attention, check_shape, described
from .rows import Rows, rows_of, take_rows

_LEAST_QUERIES = 64  # products over fewer queries at a time gain no memory worth their number


def patch_scores(out_rows: Tensor, anchor: Tensor, *, normaliser: float | None = None) -> Tensor:
    """How much each output patch looks like a concept: mean over anchors of ``O . anchor``, divided by
    ``normaliser``.

    UVR, arXiv 2606.06875, eq. localisation. The mean over anchors is a dot product with the mean anchor, so
    the number of anchors costs nothing here. Accumulated in float32.

    Args:
        out_rows: (B, N, C), attention output at N patches, C channels (heads side by side), floating.
        anchor: (C,) the mean anchor, or (A, C) anchors, A >= 1, floating.
        normaliser: divisor > 0, in the units of the product; C if None (the paper's D; its code divides by a
            root).

    Returns:
        (B, N) float32, any real number; NaN where ``out_rows`` is.

    Raises:
        ValueError: shapes disagree, there is no anchor, or ``normaliser`` is not a positive finite number.
    """
    if out_rows.dim() != 3:
        raise ValueError(f"out_rows: expected (B, N, C), got {described(out_rows)}")
    channels = out_rows.shape[2]
    if anchor.dim() not in (1, 2) or anchor.shape[-1] != channels or anchor.numel() == 0:
        raise ValueError(f"anchor: expected ({channels},) or (A, {channels}) with A >= 1, got {described(anchor)}")
    divisor = float(channels) if normaliser is None else float(normaliser)
    if not (divisor > 0 and math.isfinite(divisor)):
        raise ValueError(f"normaliser: expected a finite number > 0, got {normaliser}")
    mean = anchor.to(device=out_rows.device, dtype=torch.float32).reshape(-1, channels).mean(dim=0)
    return out_rows.to(torch.float32) @ mean / divisor


def mass_on(
    q: Tensor, k: Tensor, key_weight: Tensor, *, attn_mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Each query's attention mass on M weighted sets of keys: ``sum_j a(i, j) * key_weight(j, m)``.

    The weights stand in for V, D columns to a fused call (ceil(M / D) calls), so the attention matrix is
    never held.

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Sk, D).
        key_weight: (B, Sk, M) or (Sk, M), bool or number; columns of indicators give the mass on groups of
            keys.
        attn_mask: the mask of the stock call.
        scale: factor of the logits, D**-0.5 if None.

    Returns:
        (B, H, Sq, M), dtype of ``q``; in [0, 1] up to rounding for indicators.

    Raises:
        ValueError: shapes disagree.
    """
    check_attention(q, k, k)
    batch, _, keys, _ = k.shape
    if key_weight.dim() == 2:
        key_weight = key_weight.expand(batch, -1, -1)
    if key_weight.dim() != 3:
        raise ValueError(f"key_weight: expected (B, Sk, M) or (Sk, M), got {described(key_weight)}")
    check_shape("key_weight", key_weight, (batch, keys, key_weight.shape[2]))
    parts = list(_mass_chunks(q, k, key_weight, attn_mask, scale))
    return torch.cat(parts, dim=-1) if parts else q.new_zeros((*q.shape[:3], 0))


def _mass_chunks(
    q: Tensor, k: Tensor, key_weight: Tensor, attn_mask: Tensor | None, scale: float | None
) -> Iterator[Tensor]:
    """Yield (B, H, Sq, m) masses for key_weight (B, Sk, M), m <= D columns a call, padded to D."""
    size = q.shape[3]
    for start in range(0, key_weight.shape[2], size):
        columns = key_weight[:, :, start : start + size]
        width = columns.shape[2]
        values = F.pad(columns.to(q.dtype), (0, size - width))[:, None].expand(-1, q.shape[1], -1, -1)
        yield F.scaled_dot_product_attention(q, k, values, attn_mask=attn_mask, scale=scale)[..., :width]


def flow_contrast(
    q: Tensor,
    k: Tensor,
    row_mask: Tensor,
    other_mask: Tensor,
    key_mask: Tensor,
    *,
    key_counts: Sequence[int] | None = None,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Which text tokens feed the located patches: their mean attention from ``row_mask`` over that from
    ``other_mask``.

    Our own reading of the flows of UVR, arXiv 2606.06875, eq. flow, one key at a time. A query's attention to a
    chosen key is its mass on all chosen keys (one fused call over all queries) times the softmax over these
    alone (plain products, in float32, for as many queries at a time as keep the piece below half of ``q`` in
    numbers). One host sync, unless the host knows the counts.

    Args:
        q: (B, H, Sq, D); leave out queries that are in neither mask, if they are many.
        k: (B, H, Sk, D).
        row_mask: (B, Sq) bool, the located output rows.
        other_mask: (B, Sq) bool, the output rows to compare with, as a rule the remaining ones.
        key_mask: (B, Sk) bool, the text tokens.
        key_counts: how many keys each sample chooses, not checked.
        attn_mask: the mask of the stock call.
        scale: factor of the logits, D**-0.5 if None.

    Returns:
        (B, Sk) float32 >= 0: 1 = no preference. 0 where ``key_mask`` is False, where the located rows give
        the token nothing, and in a sample in which either row mask is empty; inf where only the others give
        nothing.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    check_attention(q, k, k)
    queries = q.shape[2]
    for name, mask, tokens in (
        ("row_mask", row_mask, queries),
        ("other_mask", other_mask, queries),
        ("key_mask", key_mask, k.shape[2]),
    ):
        check_shape(name, mask, (q.shape[0], tokens))
        if mask.dtype != torch.bool:
            raise ValueError(f"{name}: expected bool, got {described(mask)}")
    result = torch.zeros(key_mask.shape, dtype=torch.float32, device=q.device)
    keys = rows_of(key_mask, key_counts)
    if keys.width == 0 or queries == 0:
        return result
    sides = torch.stack([row_mask, other_mask], dim=1)  # (B, 2, Sq)
    counts = sides.sum(dim=2, keepdim=True)  # (B, 2, 1)
    wide = torch.promote_types(q.dtype, torch.float32)
    mass = mass_on(q, k, key_mask[..., None], attn_mask=attn_mask, scale=scale)[..., 0].to(wide)  # (B, H, Sq)
    mass = torch.where(sides.any(dim=1)[:, None], mass, 0.0)  # a query on neither side may be NaN
    share = (sides / counts.clamp(min=1))[:, None] * mass[:, :, None]  # (B, H, 2, Sq)
    located, others = _received(q, k, keys, share, attn_mask, scale).unbind(dim=1)  # (B, T) each
    ratio = torch.where((located == 0) | (counts == 0).any(dim=1), 0.0, located / others).to(torch.float32)
    return result.scatter_add_(1, keys.index, torch.where(keys.valid, ratio, 0.0))  # padding adds 0 to key 0


def _received(q: Tensor, k: Tensor, keys: Rows, share: Tensor, attn_mask: Tensor | None, scale: float | None) -> Tensor:
    """(B, 2, T): what each listed key gets of the shares (B, H, 2, Sq) of the queries, mean over heads."""
    batch, heads, queries, size = q.shape
    wide = share.dtype
    listed, factor = take_rows(k, keys).to(wide).mT, size**-0.5 if scale is None else scale  # (B, H, D, T)
    bias = torch.zeros(keys.valid.shape, dtype=wide, device=q.device).masked_fill(~keys.valid, -math.inf)
    bias = bias[:, None, None]  # (B, 1, 1, T)
    if attn_mask is not None:
        bias = bias + mask_keys(additive(as_4d(attn_mask, q, k)), keys.index)  # (B, H|1, Sq|1, T)
    received = torch.zeros((batch, heads, 2, keys.width), dtype=wide, device=q.device)
    step = max(_LEAST_QUERIES, queries * size // (4 * keys.width))
    for start in range(0, queries, step):
        some = slice(start, start + step)
        logits = torch.matmul(q[:, :, some].to(wide) * factor, listed)
        logits += bias if bias.shape[2] == 1 else bias[:, :, some]
        logits = logits.softmax(dim=-1).nan_to_num_(0.0)  # a query that sees none of the listed keys
        received += share[..., some] @ logits
    return received.mean(dim=1)
