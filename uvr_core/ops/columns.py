"""Columns of the attention matrix scaled after the softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_attention, check_shape


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
    check_attention(q, k, v)
    if column_scale.dim() == 1:
        column_scale = column_scale.expand(k.shape[0], -1)
    check_shape("column_scale", column_scale, (k.shape[0], k.shape[2]))
    wide = torch.promote_types(v.dtype, torch.float32)
    scaled = (v * column_scale[:, None, :, None].to(wide)).to(v.dtype)  # rounded once
    return F.scaled_dot_product_attention(q, k, scaled, attn_mask=attn_mask, scale=scale)
