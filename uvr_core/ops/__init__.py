"""Operators on joint attention that never hold the attention matrix, and on grids of patches: pure functions, no state.

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
