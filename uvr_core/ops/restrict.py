"""Operators on joint attention that never hold the attention matrix: pure functions of tensors, no state.

Everywhere: B samples, H heads, Sq queries, Sk keys, D head size, R listed rows;
``q`` (B, H, Sq, D), ``k`` and ``v`` (B, H, Sk, D), ``out`` (B, H, Sq, D), all of one floating dtype and
device. ``attn_mask`` is as in ``F.scaled_dot_product_attention``: boolean (True = keep) or additive float, 2
to 4 dimensions, broadcastable to (B, H, Sq, Sk); three dimensions mean (H, Sq, Sk). ``scale`` multiplies the
logits, D**-0.5 unless given.

Equations are those of UVR, arXiv 2606.06875; each docstring names the one meant. Every attention
call goes through ``F.scaled_dot_product_attention`` with values as wide as the queries, because the fused
kernels want that and otherwise fall back to the form which materialises (Sq, Sk). Shape errors are
``ValueError``s; values on a device are not inspected (that would cost a host sync) unless a docstring says
so, and what cannot be computed comes back as NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "CUT_LOGIT",
    "Rows",
    "log_weights",
    "mass_on",
    "matched_noise",
    "patch_scores",
    "projected_rows",
    "redirected_rows",
    "restricted_rows",
    "restricted_rows_augmented",
    "role_flow",
    "rows_of",
    "scaled_columns",
    "scaled_columns_by_group",
    "take_rows",
    "token_contrast",
    "write_rows",
]

CUT_LOGIT = -1.0e4
"""What stands for log(0) where minus infinity cannot be used (logit units, natural log): exp(-1e4) is exactly
0 in every dtype while the stock logits of one row lie within 9e3 of each other, and it is representable in
float16 and bfloat16."""

_LEAST_QUERIES = 64  # products over fewer queries at a time gain no memory worth their number


# -- rows ----------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Rows:
    """Which query rows of each sample are meant, padded to one length; made by :func:`rows_of`.

    Attributes:
        index: (B, R) int64, positions on the query axis, ascending; padding holds 0, which is safe to gather.
        valid: (B, R) bool, True where ``index`` is a listed row. A sample's valid slots come first.
        counts: number of valid slots of each sample, on the host, so that nobody has to ask the device again.
    """

    index: Tensor
    valid: Tensor
    counts: tuple[int, ...]

    def __attrs_post_init__(self) -> None:
        if self.index.dim() != 2 or self.index.dtype != torch.int64:
            raise ValueError(f"Rows.index: expected (B, R) int64, got {_is(self.index)}")
        if self.valid.shape != self.index.shape or self.valid.dtype != torch.bool:
            raise ValueError(f"Rows.valid: expected {tuple(self.index.shape)} bool, got {_is(self.valid)}")
        if len(self.counts) != len(self.index) or any(not 0 <= n <= self.width for n in self.counts):
            raise ValueError(f"Rows.counts: expected {len(self.index)} numbers in 0..{self.width}, got {self.counts}")

    @property
    def width(self) -> int:
        """R, the padded length; 0 when no sample lists a row."""
        return self.index.shape[1]

    @property
    def padded(self) -> bool:
        """Whether any slot is padding; known on the host."""
        return any(n < self.width for n in self.counts)


def rows_of(mask: Tensor, counts: Sequence[int] | None = None) -> Rows:
    """List the True positions of each sample's mask. One host sync, unless the host knows the counts.

    Args:
        mask: (B, Sq) bool, True at the rows meant.
        counts: how many rows each sample means, not checked.

    Returns:
        :class:`Rows` with R = the largest count over the samples, 0 if nothing is listed.

    Raises:
        ValueError: ``mask`` is not (B, Sq) bool.
    """
    if mask.dim() != 2 or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected (B, Sq) bool, got {_is(mask)}")
    counts = tuple(int(n) for n in (mask.sum(dim=1).tolist() if counts is None else counts))  # the host sync
    width = max(counts, default=0)
    first = torch.sort(mask.to(torch.uint8), dim=1, descending=True, stable=True).indices[:, :width]
    valid = mask.gather(1, first)  # True first, so the valid slots are a prefix
    return Rows(index=torch.where(valid, first, 0), valid=valid, counts=counts)


def take_rows(x: Tensor, rows: Rows) -> Tensor:
    """Gather rows of the query axis.

    Args:
        x: (B, H, Sq, D), any dtype.
        rows: rows of B samples.

    Returns:
        (B, H, R, D), dtype of ``x``; padding slots hold a copy of row 0.

    Raises:
        ValueError: ``x`` is not 4-dimensional or its batch differs.
    """
    if x.dim() != 4 or x.shape[0] != rows.index.shape[0]:
        raise ValueError(f"x: expected ({rows.index.shape[0]}, H, Sq, D) for these rows, got {_is(x)}")
    if len(rows.index) == 1:  # whole rows are copied; gather copies number by number
        return x.index_select(2, rows.index[0])
    return x.gather(2, rows.index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def write_rows(
    out: Tensor,
    new: Tensor,
    rows: Rows,
    *,
    alpha: Tensor | None = None,
    noise: Tensor | None = None,
    in_place: bool = False,
) -> Tensor:
    """Replace the listed rows of an attention output by ``(1 - alpha) * new + alpha * noise``.

    UVR, arXiv 2606.06875, eq. restriction: the outer blend. No host sync. Padding cannot harm row 0: a
    padding slot repeats the sample's first valid slot, and in a sample without one it writes row 0's own
    value back.

    Args:
        out: (B, H, Sq, D), the stock output; not modified, unless ``in_place``.
        new: (B, H, R, D), values for the listed rows.
        rows: rows of B samples; no valid row may be listed twice.
        alpha: (B, R) or None (= 0), share of noise, range [0, 1], not checked. 0 gives ``new`` and 1 gives
            ``noise`` exactly, whatever the other holds.
        noise: (B, H, R, D), given exactly when ``alpha`` is.
        in_place: write into ``out``, which saves a copy of it. Only where nobody else holds it and autograd is
            off.

    Returns:
        (B, H, Sq, D), dtype of ``out``: a new tensor, bitwise ``out`` except at valid rows. If R = 0 or
        ``in_place``, ``out`` itself.

    Raises:
        ValueError: shapes disagree, or only one of ``alpha`` and ``noise`` is given.
    """
    _four("out", out)
    if (alpha is None) != (noise is None):
        raise ValueError("alpha and noise: give both or neither")
    batch, heads, _, size = out.shape
    _shape("rows.index", rows.index, (batch, rows.width))
    _shape("new", new, (batch, heads, rows.width, size))
    if rows.width == 0:
        return out
    if alpha is not None and noise is not None:
        _shape("alpha", alpha, (batch, rows.width))
        _shape("noise", noise, tuple(new.shape))
        new = _blend(new, noise, alpha[:, None, :, None])
    new = new.to(out.dtype)
    if batch == 1 and not rows.padded:
        return (out.index_copy_ if in_place else out.index_copy)(2, rows.index[0], new)
    write = out.scatter_ if in_place else out.scatter
    if not rows.padded:
        return write(2, rows.index[:, None, :, None].expand(-1, heads, -1, size), new)
    # Padding slots become copies of the sample's first valid slot: several equal writes to one place are
    # harmless.
    first = rows.valid.to(torch.uint8).argmax(dim=1, keepdim=True)  # (B, 1), 0 for a sample without rows
    slot = torch.where(rows.valid, torch.arange(rows.width, device=first.device), first)  # (B, R)
    index = rows.index.gather(1, slot)[:, None, :, None].expand(-1, heads, -1, size)  # (B, H, R, D)
    value = new.gather(2, slot[:, None, :, None].expand(-1, heads, -1, size))
    empty = ~rows.valid.any(dim=1)[:, None, None, None]
    value = torch.where(empty, out.gather(2, index), value)
    return write(2, index, value)


def matched_noise(
    out_rows: Tensor,
    rows: Rows,
    generators: torch.Generator | Sequence[torch.Generator],
    *,
    mean: Tensor | float | None = None,
    std: Tensor | float | None = None,
) -> Tensor:
    """Gaussian noise with the mean and spread of the rows it will replace, one generator per sample.

    UVR, arXiv 2606.06875, eq. restriction: eps, there N(0, I) (``mean=0.0, std=1.0``). A sample's noise is
    bitwise the same whatever else is in the batch and however far its rows are padded. Draws happen in
    float32 on the generator's device. Side effect: advances the generators of samples with rows; never
    touches the global one. No host sync.

    Args:
        out_rows: (B, H, R, D), attention output at the listed rows.
        rows: rows of B samples.
        generators: B distinct generators; a bare one only if B = 1.
        mean: per-head mean, (B, H, 1, 1) or a number; None = of the sample's own valid rows.
        std: per-head standard deviation (population), (B, H, 1, 1) or a number, >= 0; None = as for ``mean``.

    Returns:
        (B, H, R, D), dtype and device of ``out_rows``; 0 at padding slots.

    Raises:
        ValueError: shapes disagree, or there is not exactly one distinct generator per sample.
    """
    _four("out_rows", out_rows)
    batch, heads, width, size = out_rows.shape
    _shape("rows.index", rows.index, (batch, width))
    given = [generators] if isinstance(generators, torch.Generator) else list(generators or ())
    if len(given) != batch or len({id(g) for g in given}) != batch:
        raise ValueError(
            f"generators: expected {batch} distinct torch.Generators, one per sample, got {len(given)}"
            f" ({len({id(g) for g in given})} distinct)"
        )
    if not all(isinstance(g, torch.Generator) for g in given):
        raise ValueError(f"generators: expected torch.Generators, got {[type(g).__name__ for g in given]}")
    for name, value in (("mean", mean), ("std", std)):
        if isinstance(value, Tensor):
            _shape(name, value, (batch, heads, 1, 1))
    noise = torch.zeros_like(out_rows)
    for b, (count, generator) in enumerate(zip(rows.counts, given, strict=True)):
        if count == 0:
            continue
        own = out_rows[b, :, :count].to(torch.float32).contiguous()  # (H, count, D): the same whatever the padding
        mu = own.mean(dim=(1, 2), keepdim=True) if mean is None else _of_sample(mean, b)
        sd = own.std(dim=(1, 2), keepdim=True, correction=0) if std is None else _of_sample(std, b)
        drawn = torch.randn((heads, count, size), generator=generator, device=generator.device)
        noise[b, :, :count] = (drawn.to(own.device) * sd + mu).to(noise.dtype)
    return noise


# -- renormalised reweighting of rows ------------------------------------------------------------------------


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
        raise ValueError(f"row_class, key_class: expected (B, R), (B, Sk), got {_is(row_class)}, {_is(key_class)}")
    per_class = F.embedding(key_class, log_table.T).mT  # (B, n_row_classes, Sk); unlike [], takes no negative index
    return torch.stack([F.embedding(rows, weight) for rows, weight in zip(row_class, per_class, strict=True)])


def restricted_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Rows,
    log_weight: Tensor,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
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

    Returns:
        (B, H, R, D), dtype of ``q``. Padding slots hold something meaningless; it is finite for finite q, k,
        v and a ``log_weight`` per row. A valid row of which every key is cut has no answer: that is the
        caller's error, and the row is NaN on every kernel.

    Raises:
        ValueError: shapes disagree or ``attn_mask`` does not broadcast.
    """
    _qkv(q, k, v)
    batch = q.shape[0]
    _shape("rows.index", rows.index, (batch, rows.width))
    alike = log_weight.dim() == 3 and log_weight.shape[1] == 1
    _shape("log_weight", log_weight, (batch, 1 if alike else rows.width, k.shape[2]))
    picked = take_rows(q, rows)
    if rows.width == 0:
        return picked
    mask = None if attn_mask is None else _mask_rows(_mask4(attn_mask, q, k), rows.index)
    return _attend_biased(picked, k, v, rows, log_weight, mask, scale)


def redirected_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Rows,
    own: slice,
    other_k: Tensor,
    other_v: Tensor,
    log_weight: Tensor,
    *,
    attn_mask: Tensor | None = None,
    other_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """:func:`restricted_rows` with one span of the keys replaced by keys and values from elsewhere.

    ``O(i) = sum_j softmax_j(q_i . k'_j * scale + log lambda(i, j)) v'_j``, with k', v' the call's own outside
    of ``own`` and the others' in its place. Queries are the call's own. One fused
    call for each half of the heads.

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Sk, D).
        v: (B, H, Sk, D).
        rows: the rows to compute.
        own: the keys to replace, a slice with start and stop in 0..Sk.
        other_k: (B, H, T, D), T >= 0; it need not be the length of ``own``.
        other_v: (B, H, T, D).
        log_weight: (B, R, Sk'), Sk' = Sk - len(own) + T, as for :func:`restricted_rows`.
        attn_mask: the mask of the stock call; what it says of ``own`` is dropped.
        other_mask: (B|1, H|1, R|1, T|1), bool or additive float, for the other keys; None = all are seen.
        scale: factor of the logits, D**-0.5 if None.

    Returns:
        (B, H, R, D), dtype of ``q``, padding and wholly cut rows as in :func:`restricted_rows`.

    Raises:
        ValueError: shapes disagree or a mask does not broadcast.
    """
    _qkv(q, k, v)
    _qkv(q, other_k, other_v)
    keys = k.shape[2]
    if not 0 <= own.start <= own.stop <= keys:
        raise ValueError(f"own: expected a slice within 0..{keys}, got {own}")

    def joined(mine: Tensor, others: Tensor, dim: int) -> Tensor:
        before, after = mine.narrow(dim, 0, own.start), mine.narrow(dim, own.stop, keys - own.stop)
        return torch.cat([before, others, after], dim)

    _shape("rows.index", rows.index, (q.shape[0], rows.width))
    _shape("log_weight", log_weight, (q.shape[0], rows.width, keys - (own.stop - own.start) + other_k.shape[2]))
    picked = take_rows(q, rows)
    if rows.width == 0:
        return picked
    mask = None
    if attn_mask is not None or other_mask is not None:
        seen = torch.ones((), dtype=torch.bool, device=q.device)
        mine = seen[None, None, None] if attn_mask is None else _mask_rows(_mask4(attn_mask, q, k), rows.index)
        theirs = seen[None, None, None] if other_mask is None else _mask4(other_mask, picked, other_k)
        lead = torch.broadcast_shapes(mine.shape[:3], theirs.shape[:3])
        mine, theirs = _additive(mine).expand(*lead, keys), _additive(theirs).expand(*lead, other_k.shape[2])
        mask = joined(mine, theirs, 3)

    def attend(heads: slice) -> Tensor:
        new_k, new_v = (joined(x[:, heads], y[:, heads], 2) for x, y in ((k, other_k), (v, other_v)))
        hidden = mask if mask is None or mask.shape[1] == 1 else mask[:, heads]
        return _attend_biased(picked[:, heads], new_k, new_v, rows, log_weight, hidden, scale)

    half = (q.shape[1] + 1) // 2  # of the heads at a time: the joined keys and values are copies
    return torch.cat([attend(slice(start, start + half)) for start in range(0, q.shape[1], half)], 1)


def projected_rows(out_rows: Tensor, vector: Tensor, offset: Tensor, strength: Tensor) -> Tensor:
    """Take a direction out of the rows that score positive on it.

    ``O' = O - strength * max(0, s) / |vector|^2 * vector`` with ``s = O . vector + offset``, O a row's heads
    side by side: a positive score becomes (1 - strength) s, another row stays bitwise what it is. Computed in
    float32.

    Args:
        out_rows: (B, H, R, D), attention output at R rows.
        vector: (C,), C = H * D; zero = no change.
        offset: (B, R), added to the score.
        strength: (B, R), >= 0, 1 = the score becomes 0; not checked.

    Returns:
        (B, H, R, D), dtype of ``out_rows``.

    Raises:
        ValueError: shapes disagree.
    """
    _four("out_rows", out_rows)
    batch, heads, width, size = out_rows.shape
    _shape("vector", vector, (heads * size,))
    _shape("offset", offset, (batch, width))
    _shape("strength", strength, (batch, width))
    wide = torch.promote_types(out_rows.dtype, torch.float32)
    rows, axis = out_rows.transpose(1, 2).flatten(2).to(wide), vector.to(wide)  # (B, R, C)
    score = (rows @ axis + offset.to(wide)).clamp(min=0)
    square = axis.square().sum()
    share = torch.where(square > 0, strength.to(wide) * score / square, 0.0)
    moved = torch.where(share[..., None] == 0, rows, rows - share[..., None] * axis)
    return moved.to(out_rows.dtype).reshape(batch, width, heads, size).transpose(1, 2)


def restricted_rows_augmented(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Rows,
    row_class: Tensor,
    key_class: Tensor,
    table: Tensor,
    *,
    attn_mask: None = None,
    scale: float | None = None,
) -> Tensor:
    """:func:`restricted_rows` with :func:`log_weights`, for kernels that refuse a mask.

    UVR, arXiv 2606.06875, eq. restriction. The head size is widened, q' = [q, c * onehot(row class)] and
    k' = [k, log lambda of (row class, key class) / (scale * c)], c a power of two, so that q'.k' * scale is
    the biased logit; in 16-bit dtypes log lambda is carried as a high and a low part. Zero columns fill up to
    a multiple of 8. lambda = 0 becomes :data:`CUT_LOGIT`, which gives a weight of exactly zero. Keys that a
    mask would hide (padded text) need a key class whose lambda is 0.

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Sk, D).
        v: (B, H, Sk, D).
        rows: the rows to compute.
        row_class: (B, R) int64, see :func:`log_weights`.
        key_class: (B, Sk) int64.
        table: (n_row_classes, n_key_classes), lambdas; keep it on the CPU.
        attn_mask: must be None; stands here so that both forms are called alike.
        scale: factor of the logits, > 0, D**-0.5 if None.

    Returns:
        (B, H, R, D), dtype of ``q``, padding and wholly cut rows as in :func:`restricted_rows`.

    Raises:
        ValueError: as for :func:`log_weights`; shapes disagree; ``attn_mask`` is given; ``scale`` <= 0.
    """
    _qkv(q, k, v)
    if attn_mask is not None:
        raise ValueError(
            "attn_mask: this form takes none; give hidden keys a class of lambda 0, or use restricted_rows"
        )
    batch, heads, keys, size = k.shape
    factor = size**-0.5 if scale is None else float(scale)
    if not factor > 0:
        raise ValueError(f"scale: expected > 0, got {scale}")
    log_table = _log_table(table).to(q.device)
    _shape("rows.index", rows.index, (batch, rows.width))
    _shape("row_class", row_class, (batch, rows.width))
    _shape("key_class", key_class, (batch, keys))
    picked = take_rows(q, rows)
    if rows.width == 0:
        return picked
    unit = 2.0 ** math.ceil(-math.log2(factor))  # exact in every dtype, and keeps k' below |CUT_LOGIT|
    bias = F.embedding(key_class, log_table.clamp(min=CUT_LOGIT).T / (factor * unit))  # (B, Sk, n_row_classes)
    high = bias.to(q.dtype)
    parts = [high] if bias.dtype == q.dtype else [high, (bias - high).to(q.dtype)]
    one_hot = unit * F.one_hot(row_class, table.shape[0]).to(q.dtype)  # (B, R, n_row_classes)
    q_extra = torch.cat([one_hot] * len(parts), dim=-1)[:, None].expand(-1, heads, -1, -1)
    k_extra = torch.cat(parts, dim=-1)[:, None].expand(-1, heads, -1, -1)
    extra = q_extra.shape[-1]
    fill = -(size + extra) % 8
    wide_q = F.pad(torch.cat([picked, q_extra], dim=-1), (0, fill))
    wide_k = F.pad(torch.cat([k, k_extra], dim=-1), (0, fill))
    new = _attend(wide_q, wide_k, F.pad(v, (0, extra + fill)), None, factor)[..., :size]
    # With every key cut the finite stand-ins would cancel in the softmax and give back the stock row: never
    # let that out.
    present = torch.zeros((batch, table.shape[1]), dtype=torch.bool, device=q.device).scatter(1, key_class, True)
    alive = ((log_table > -math.inf) & present[:, None, :]).any(dim=-1)  # (B, n_row_classes)
    cut = ~alive.gather(1, row_class) & rows.valid
    return new.masked_fill(cut[:, None, :, None], math.nan)


# -- column scaling, not renormalised ------------------------------------------------------------------------


def scaled_columns(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    column_scale: Tensor,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention whose columns are multiplied after the softmax and not renormalised: the same as scaling rows
    of V.

    The restriction of the code released with UVR, arXiv 2606.06875 (not its printed eq. restriction).

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Sk, D).
        v: (B, H, Sk, D).
        column_scale: (B, Sk) or (Sk,), factor of each key's column, any finite value; all ones = bitwise
            stock.
        attn_mask: the mask of the stock call.
        scale: factor of the logits, D**-0.5 if None.

    Returns:
        (B, H, Sq, D), dtype of ``q``.

    Raises:
        ValueError: shapes disagree.
    """
    _qkv(q, k, v)
    if column_scale.dim() == 1:
        column_scale = column_scale.expand(k.shape[0], -1)
    _shape("column_scale", column_scale, (k.shape[0], k.shape[2]))
    return _attend(q, k, _scale_rows(v, column_scale), attn_mask, scale)


def scaled_columns_by_group(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_group: Tensor,
    column_scale: Tensor,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    split: bool = False,
) -> Tensor:
    """:func:`scaled_columns` with another column scale for each group of queries.

    The restriction of the code released with UVR, arXiv 2606.06875. By default G full fused calls, of which
    each query keeps its group's (groups may differ per sample): bitwise stock for queries of a group whose
    scales are all ones. With ``split`` each query is computed once, about the cost of one call, by one call
    per group on that group's queries; same values up to rounding, because kernels block by the number of
    queries.

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Sk, D).
        v: (B, H, Sk, D).
        query_group: (B, Sq) or (Sq,) int64 in 0..G-1. A query of another group gets NaN.
        column_scale: (G, Sk) or (B, G, Sk).
        attn_mask: the mask of the stock call.
        scale: factor of the logits, D**-0.5 if None.
        split: compute group by group; needs ``query_group`` (Sq,), and one host sync per group.

    Returns:
        (B, H, Sq, D), dtype of ``q``.

    Raises:
        ValueError: shapes disagree, G = 0, or ``split`` with groups per sample.
    """
    _qkv(q, k, v)
    batch, _, queries, _ = q.shape
    if split and query_group.dim() != 1:
        raise ValueError(f"query_group: split needs one (Sq,) grouping for all samples, got {_is(query_group)}")
    if column_scale.dim() == 2:
        column_scale = column_scale.expand(batch, -1, -1)
    groups = column_scale.shape[1] if column_scale.dim() == 3 else 0
    _shape("column_scale", column_scale, (batch, max(groups, 1), k.shape[2]))
    query_group = query_group.expand(batch, -1) if query_group.dim() == 1 else query_group
    _shape("query_group", query_group, (batch, queries))
    out = torch.full_like(q, math.nan)
    for g in range(groups):
        own = query_group == g  # (B, Sq)
        values = _scale_rows(v, column_scale[:, g])
        if split:
            index = own[0].nonzero().flatten()  # host sync
            if index.numel():
                mask = None if attn_mask is None else _mask_rows(_mask4(attn_mask, q, k), index.expand(batch, -1))
                out.index_copy_(2, index, _attend(q.index_select(2, index), k, values, mask, scale))
        else:
            out = torch.where(own[:, None, :, None], _attend(q, k, values, attn_mask, scale), out)
    return out


# -- reading -------------------------------------------------------------------------------------------------


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
        raise ValueError(f"out_rows: expected (B, N, C), got {_is(out_rows)}")
    channels = out_rows.shape[2]
    if anchor.dim() not in (1, 2) or anchor.shape[-1] != channels or anchor.numel() == 0:
        raise ValueError(f"anchor: expected ({channels},) or (A, {channels}) with A >= 1, got {_is(anchor)}")
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
    _qkv(q, k, k)
    batch, _, keys, _ = k.shape
    if key_weight.dim() == 2:
        key_weight = key_weight.expand(batch, -1, -1)
    if key_weight.dim() != 3:
        raise ValueError(f"key_weight: expected (B, Sk, M) or (Sk, M), got {_is(key_weight)}")
    _shape("key_weight", key_weight, (batch, keys, key_weight.shape[2]))
    parts = list(_mass_chunks(q, k, key_weight, attn_mask, scale))
    return torch.cat(parts, dim=-1) if parts else q.new_zeros((*q.shape[:3], 0))


def role_flow(
    q: Tensor,
    k: Tensor,
    query_roles: Tensor,
    key_roles: Tensor,
    n_roles: int,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Mean attention between roles, ``A^{X->Y} = 1 / (|X||Y|) sum_{i in X, j in Y} a(i, j)``, averaged over
    heads.

    UVR, arXiv 2606.06875, eq. flow; X are the queries' roles and Y the keys'.

    Args:
        q: (B, H, Sq, D).
        k: (B, H, Sk, D).
        query_roles: (B, Sq) or (Sq,) int64; a role outside 0..n_roles-1 (say -1) belongs to nobody.
        key_roles: (B, Sk) or (Sk,) int64, likewise.
        n_roles: number of roles, >= 1.
        attn_mask: the mask of the stock call; hidden keys still count in |Y|, so give padding the role -1.
        scale: factor of the logits, D**-0.5 if None.

    Returns:
        (B, n_roles, n_roles) float32, [b, X, Y] in [0, 1]; 0 where a role has no tokens.

    Raises:
        ValueError: shapes disagree or ``n_roles`` < 1.
    """
    _qkv(q, k, k)
    if n_roles < 1:
        raise ValueError(f"n_roles: expected >= 1, got {n_roles}")
    batch = q.shape[0]
    roles = torch.arange(n_roles, device=q.device)
    query_roles = query_roles.expand(batch, -1) if query_roles.dim() == 1 else query_roles
    key_roles = key_roles.expand(batch, -1) if key_roles.dim() == 1 else key_roles
    _shape("query_roles", query_roles, (batch, q.shape[2]))
    _shape("key_roles", key_roles, (batch, k.shape[2]))
    on_query = (query_roles[..., None] == roles).to(torch.float32)  # (B, Sq, X)
    on_key = key_roles[..., None] == roles  # (B, Sk, Y)
    mass = mass_on(q, k, on_key, attn_mask=attn_mask, scale=scale).mean(dim=1, dtype=torch.float32)  # (B, Sq, Y)
    pairs = on_query.sum(dim=1)[:, :, None] * on_key.sum(dim=1)[:, None, :]  # |X||Y|
    return on_query.transpose(1, 2) @ mass / pairs.clamp(min=1)


def token_contrast(
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
    _qkv(q, k, k)
    batch, heads, queries, size = q.shape
    for name, mask, tokens in (
        ("row_mask", row_mask, queries),
        ("other_mask", other_mask, queries),
        ("key_mask", key_mask, k.shape[2]),
    ):
        _shape(name, mask, (batch, tokens))
        if mask.dtype != torch.bool:
            raise ValueError(f"{name}: expected bool, got {_is(mask)}")
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
    chosen, factor = take_rows(k, keys).to(wide).mT, size**-0.5 if scale is None else scale  # (B, H, D, T)
    bias = torch.zeros(keys.valid.shape, dtype=wide, device=q.device).masked_fill(~keys.valid, -math.inf)
    bias = bias[:, None, None]  # (B, 1, 1, T)
    if attn_mask is not None:
        bias = bias + _mask_keys(_additive(_mask4(attn_mask, q, k)), keys.index)  # (B, H|1, Sq|1, T)
    given = torch.zeros((batch, heads, 2, keys.width), dtype=wide, device=q.device)
    step = max(_LEAST_QUERIES, queries * size // (4 * keys.width))
    for start in range(0, queries, step):
        some = slice(start, start + step)
        logits = torch.matmul(q[:, :, some].to(wide) * factor, chosen)
        logits += bias if bias.shape[2] == 1 else bias[:, :, some]
        logits = logits.softmax(dim=-1).nan_to_num_(0.0)  # a query that sees none of the chosen keys
        given += share[..., some] @ logits
    located, others = given.mean(dim=1).unbind(dim=1)  # (B, T) each
    ratio = torch.where((located == 0) | (counts == 0).any(dim=1), 0.0, located / others).to(torch.float32)
    return result.scatter_add_(1, keys.index, torch.where(keys.valid, ratio, 0.0))  # padding adds 0 to key 0


# -- small parts ---------------------------------------------------------------------------------------------


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _attend_biased(
    picked: Tensor, k: Tensor, v: Tensor, rows: Rows, log_weight: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """Attention of picked rows (B, H, R, D) under log_weight (B, R|1, Sk) and a mask (B|1, H|1, R|1, Sk|1)."""
    bias = log_weight[:, None].to(torch.promote_types(picked.dtype, torch.float32))  # (B, 1, R|1, Sk)
    if mask is not None:
        bias = bias.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else bias + mask
    if rows.padded and bias.shape[2] > 1:
        bias = torch.where(rows.valid[:, None, :, None], bias, 0.0)
    bias = bias.to(picked.dtype)
    cut = bias.amax(dim=-1, keepdim=True) == -math.inf  # (B, H|1, R, 1); padding rows are all 0
    new = _attend(picked, k, v, bias, scale)
    return (new.masked_fill if new.requires_grad else new.masked_fill_)(cut, math.nan)


def _additive(mask: Tensor) -> Tensor:
    """A float mask as it is, a boolean one as 0 and minus infinity."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_fill(~mask, -math.inf)


def _mass_chunks(
    q: Tensor, k: Tensor, key_weight: Tensor, attn_mask: Tensor | None, scale: float | None
) -> Iterator[Tensor]:
    """Yield (B, H, Sq, m) masses for key_weight (B, Sk, M), m <= D columns a call, padded to D."""
    size = q.shape[3]
    for start in range(0, key_weight.shape[2], size):
        columns = key_weight[:, :, start : start + size]
        width = columns.shape[2]
        values = F.pad(columns.to(q.dtype), (0, size - width))[:, None].expand(-1, q.shape[1], -1, -1)
        yield _attend(q, k, values, attn_mask, scale)[..., :width]


def _mask4(attn_mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """View a mask of 2 to 4 dimensions as 4; sizes stay 1 where they broadcast."""
    full = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    mask = attn_mask[(None,) * (4 - attn_mask.dim())] if 2 <= attn_mask.dim() <= 4 else attn_mask
    if mask.dim() != 4 or any(m not in (1, n) for m, n in zip(mask.shape, full, strict=True)):
        raise ValueError(f"attn_mask: expected 2 to 4 dimensions broadcasting to {full}, got {_is(attn_mask)}")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"attn_mask: expected bool or floating, got {_is(attn_mask)}")
    return mask


def _mask_rows(mask: Tensor, index: Tensor) -> Tensor:
    """Gather a 4-dimensional mask at query rows ``index`` (B, R); a query axis of size 1 stays."""
    if mask.shape[2] == 1:
        return mask
    batch, width = index.shape
    rows = index[:, None, :, None].expand(-1, mask.shape[1], width, mask.shape[3])
    return mask.expand(batch, -1, -1, -1).gather(2, rows)


def _mask_keys(mask: Tensor, index: Tensor) -> Tensor:
    """Gather a 4-dimensional mask at keys ``index`` (B, T); a key axis of size 1 stays."""
    if mask.shape[3] == 1:
        return mask
    keys = index[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1)
    return mask.expand(len(index), -1, -1, -1).gather(3, keys)


def _scale_rows(v: Tensor, column_scale: Tensor) -> Tensor:
    """V (B, H, Sk, D) with its rows scaled by (B, Sk), rounded once."""
    wide = torch.promote_types(v.dtype, torch.float32)
    return (v * column_scale[:, None, :, None].to(wide)).to(v.dtype)


def _blend(new: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """(1 - alpha) * new + alpha * noise in float32 or better, exact at alpha 0 and 1."""
    wide = torch.promote_types(new.dtype, torch.float32)
    a, x, e = alpha.to(wide), new.to(wide), noise.to(wide)
    return torch.where(a == 0, x, torch.where(a == 1, e, (1 - a) * x + a * e)).to(new.dtype)


def _of_sample(stat: Tensor | float, b: int) -> Tensor | float:
    return stat[b].to(torch.float32) if isinstance(stat, Tensor) else stat


def _log_table(table: Tensor) -> Tensor:
    if table.dim() != 2 or table.numel() == 0 or not table.is_floating_point():
        raise ValueError(f"table: expected (n_row_classes, n_key_classes) floating, got {_is(table)}")
    bad = (~(torch.isfinite(table) & (table >= 0))).nonzero()
    if len(bad):
        r, c = bad[0].tolist()
        raise ValueError(f"table[{r}, {c}]: expected a finite lambda >= 0, got {table[r, c].item()}")
    return table.to(torch.promote_types(table.dtype, torch.float32)).log()


def _qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    _four("q", q)
    _four("k", k)
    if (k.shape[0], k.shape[1], k.shape[3]) != (q.shape[0], q.shape[1], q.shape[3]):
        raise ValueError(f"k: expected ({q.shape[0]}, {q.shape[1]}, Sk, {q.shape[3]}) as q has it, got {_is(k)}")
    _shape("v", v, tuple(k.shape))


def _four(name: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise ValueError(f"{name}: expected (B, H, tokens, D), got {_is(x)}")


def _shape(name: str, x: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(x.shape) != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {_is(x)}")


def _is(x: Tensor) -> str:
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
