"""Readings of attention: patch scores, attention mass, flow contrast."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .attn_mask import additive, as_4d
from .checks import check_attention, check_shape, described

_LEAST_QUERIES = 64  # products over fewer queries at a time gain no memory worth their number
_WIDE = "dtype" in torch.ops.aten.bmm.overloads()  # torch >= 2.8: products of half precision in float32, on CUDA
_HIDDEN = -1e30  # added to a logit, leaves nothing of its weight beside any other


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


def contrast_share(row_mask: Tensor, other_mask: Tensor) -> Tensor:
    """What every query counts for in a :func:`flow_contrast`: 1/n on either side that has n queries.

    Args:
        row_mask: (B, Sq) bool, the located output rows.
        other_mask: (B, Sq) bool, the output rows to compare with, as a rule the remaining ones.

    Returns:
        (B, 2, Sq) float32: the located side, then the others. All 0 in a sample in which either side is empty.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    for name, mask in (("row_mask", row_mask), ("other_mask", other_mask)):
        check_shape(name, mask, (len(row_mask), row_mask.shape[-1]))
        if mask.dtype != torch.bool:
            raise ValueError(f"{name}: expected bool, got {described(mask)}")
    sides = torch.stack([row_mask, other_mask], dim=1)
    counts = sides.sum(dim=2, keepdim=True)  # (B, 2, 1)
    return sides / counts.clamp(min=1) * (counts > 0).all(dim=1, keepdim=True)


def indicator(keys: Sequence[slice], tokens: int, width: int, like: Tensor) -> Tensor:
    """(tokens, width) of the dtype and device of ``like``: values of which column 0 gives the mass on some keys."""
    columns = torch.zeros(tokens, width, dtype=like.dtype, device=like.device)
    for span in keys:
        columns[span, 0] = 1
    return columns


def flow_contrast(
    q: Tensor,
    k: Tensor,
    share: Tensor,
    keys: Sequence[slice],
    *,
    chosen_keys: Tensor | None = None,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Which tokens feed the located patches: their mean attention from the located rows over that from the others.

    Our own reading of the flows of UVR, arXiv 2606.06875, eq. flow, one key at a time. A query's attention to a
    chosen key is its mass on all chosen keys (one fused call over all queries) times the softmax over these
    alone (plain products, in float32, for as many queries at a time as keep both pieces below the bytes of ``k``).
    No host sync.

    Args:
        q: (B, H, Sq, D); leave out queries that are on neither side, if they are many.
        k: (B, H, Sk, D).
        share: (B, 2, Sq), see :func:`contrast_share`.
        keys: spans of the keys to measure, T keys together, none twice.
        chosen_keys: what :func:`indicator` gives for them, if somebody has kept it.
        attn_mask: the mask of the stock call.
        scale: factor of the logits, D**-0.5 if None.

    Returns:
        (B, T) float32 >= 0, in the order of ``keys``: 1 = no preference. 0 where the located rows give the token
        nothing, and in a sample in which either side is empty; inf where only the others give nothing.

    Raises:
        ValueError: shapes disagree.
    """
    check_attention(q, k, k)
    batch, _, queries, size = q.shape
    check_shape("share", share, (batch, 2, queries))
    measured = sum(span.stop - span.start for span in keys)
    if measured == 0 or queries == 0:
        return torch.zeros((batch, measured), dtype=torch.float32, device=q.device)
    wide = torch.promote_types(q.dtype, torch.float32)
    columns = indicator(keys, k.shape[2], size, q) if chosen_keys is None else chosen_keys
    mass = F.scaled_dot_product_attention(q, k, columns.expand_as(k), attn_mask=attn_mask, scale=scale)
    weighted = share[:, None] * mass[:, :, None, :, 0].to(wide)  # (B, H, 2, Sq)
    del mass
    if attn_mask is not None:
        weighted = torch.where(share[:, None] > 0, weighted, 0.0)  # a query on neither side may be NaN
    step = max(_LEAST_QUERIES, k.nbytes // (8 * batch * k.shape[1] * measured))  # logits and shares: 4 bytes each
    bias = _key_bias(q, k, keys, attn_mask)
    received = _received(q, _joined(k, keys, 2), weighted, bias, scale, step)
    located, others = received.unbind(dim=1)  # (B, T) each
    return (located / others).to(torch.float32).masked_fill_(located == 0, 0.0)


def _joined(x: Tensor, spans: Sequence[slice], dim: int) -> Tensor:
    """The spans of one dimension, side by side; a view if there is but one."""
    parts = [x.narrow(dim, span.start, span.stop - span.start) for span in spans if span.stop > span.start]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _key_bias(q: Tensor, k: Tensor, keys: Sequence[slice], attn_mask: Tensor | None) -> Tensor | None:
    """(B|1, H|1, Sq|1, T) float32, what a mask says of the measured keys, with finite numbers for what it hides."""
    if attn_mask is None:
        return None
    mask = additive(as_4d(attn_mask, q, k)).float()
    mask = mask.expand(*mask.shape[:3], k.shape[2])
    return _joined(mask, keys, 3).clamp(min=_HIDDEN)


def _received(q: Tensor, keys: Tensor, weighted: Tensor, bias: Tensor | None, scale: float | None, step: int) -> Tensor:
    """(B, 2, T): what each key (B, H, T, D) gets of the weighted queries (B, H, 2, Sq), mean over heads."""
    batch, heads, queries, size = q.shape
    factor, width = size**-0.5 if scale is None else scale, keys.shape[2]
    each, listed, weighted = q.flatten(0, 1), keys.flatten(0, 1).mT, weighted.flatten(0, 1)  # B * H in front
    narrow = bias is None and q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and _WIDE
    if not narrow:
        each, listed = each.to(weighted.dtype), listed.to(weighted.dtype)
    received: Tensor | None = None
    for start in range(0, queries, step):
        some = slice(start, start + step)
        if narrow:  # the same numbers as below, on units that float32 has not
            logits = torch.bmm(each[:, some], listed, out_dtype=torch.float32).mul_(factor)
        elif bias is None:
            logits = torch.baddbmm(listed[:, :1, :1], each[:, some], listed, beta=0, alpha=factor)
        else:
            rows = bias if bias.shape[2] == 1 else bias[:, :, some]
            rows = rows.expand(batch, heads, -1, -1).flatten(0, 1)
            logits = torch.baddbmm(rows.to(each.dtype), each[:, some], listed, alpha=factor)
        shares = logits.softmax(dim=-1)
        del logits
        part = weighted[:, :, some]
        received = torch.bmm(part, shares) if received is None else received.baddbmm_(part, shares)
        del shares
    assert received is not None
    return received.view(batch, heads, 2, width).mean(dim=1)
