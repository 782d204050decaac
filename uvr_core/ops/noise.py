"""Noise in place of rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_shape, check_tokens
from .rows import Rows
from .upload import upload


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
    check_tokens("out_rows", out_rows)
    batch, heads, width, size = out_rows.shape
    check_shape("rows.index", rows.index, (batch, width))
    each = _one_per_sample(generators, batch)
    for name, value in (("mean", mean), ("std", std)):
        if isinstance(value, Tensor):
            check_shape(name, value, (batch, heads, 1, 1))
    noise = torch.zeros_like(out_rows)
    for b, (count, generator) in enumerate(zip(rows.counts, each, strict=True)):
        if count == 0:
            continue
        replaced = out_rows[b, :, :count].to(torch.float32).contiguous()  # (H, count, D): the same whatever the padding
        mu = replaced.mean(dim=(1, 2), keepdim=True) if mean is None else _of_sample(mean, b)
        sd = replaced.std(dim=(1, 2), keepdim=True, correction=0) if std is None else _of_sample(std, b)
        drawn = torch.randn((heads, count, size), generator=generator, device=generator.device)
        drawn = drawn if drawn.device == replaced.device else upload(drawn.numpy(), replaced.device)
        noise[b, :, :count] = (
            torch.addcmul(mu, drawn, sd) if isinstance(mu, Tensor) and isinstance(sd, Tensor) else drawn * sd + mu
        )
    return noise


def _one_per_sample(generators: torch.Generator | Sequence[torch.Generator], batch: int) -> Sequence[torch.Generator]:
    each = [generators] if isinstance(generators, torch.Generator) else list(generators or ())
    distinct = len({id(g) for g in each})
    if len(each) != batch or distinct != batch:
        raise ValueError(
            f"generators: expected {batch} distinct torch.Generators, one per sample, got {len(each)}"
            f" ({distinct} distinct)"
        )
    if not all(isinstance(g, torch.Generator) for g in each):
        raise ValueError(f"generators: expected torch.Generators, got {[type(g).__name__ for g in each]}")
    return each


def _of_sample(stat: Tensor | float, b: int) -> Tensor | float:
    return stat[b].to(torch.float32) if isinstance(stat, Tensor) else stat


def blended_rows(new: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """Rows with their share of noise: ``(1 - alpha) * new + alpha * noise``, computed in float32 or better.

    UVR, arXiv 2606.06875, eq. restriction: the outer blend.

    Args:
        new: (B, H, R, D), the rows.
        noise: (B, H, R, D).
        alpha: (B, R), share of noise, range [0, 1], not checked. 0 gives ``new`` and 1 gives ``noise`` exactly,
            whatever the other holds.

    Returns:
        (B, H, R, D), dtype of ``new``.

    Raises:
        ValueError: shapes disagree.
    """
    check_shape("alpha", alpha, (new.shape[0], new.shape[2]))
    check_shape("noise", noise, tuple(new.shape))
    wide = torch.promote_types(new.dtype, torch.float32)
    a, x, e = alpha[:, None, :, None].to(wide), new.to(wide), noise.to(wide)
    return torch.where(a == 0, x, torch.where(a == 1, e, (1 - a) * x + a * e)).to(new.dtype)
