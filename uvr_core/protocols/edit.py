"""An edit: what flows into located rows."""

from __future__ import annotations

from typing import Literal

import attrs
import torch

from ..errors import UVRError

STOCK, CORE, RING = 0, 1, 2  # classes of an output row
TEXT, SAFE, LOCATED, REFERENCE = (
    0,
    1,
    2,
    3,
)  # classes of a key: text, output elsewhere, output in core or ring, reference

# Classes of a query and of a key in ColumnScale.
Q_TEXT, Q_OUTPUT, Q_REFERENCE = 0, 1, 2
K_TEXT, K_OUTPUT, K_REFERENCE, K_FACING_CORE, K_FACING_RING = 0, 1, 2, 3, 4


@attrs.frozen
class ColumnScale:
    """Attention weights scaled after the softmax and not renormalised: what the released code does when editing.

    It reaches every query of an image in which something was located; other images stay bitwise stock.

    Attributes:
        table: 3 x 5 factors >= 0, [query: Q_TEXT, Q_OUTPUT, Q_REFERENCE][key: K_TEXT, K_OUTPUT, K_REFERENCE,
            K_FACING_CORE, K_FACING_RING]. The last two are reference tokens at the place of a core or ring patch
            in their own image (nearest, if its grid has another size).
    """

    table: tuple[tuple[float, float, float, float, float], ...]


@attrs.frozen(eq=False)
class Projection:
    """Take a direction out of rows whose score is positive; the score becomes (1 - strength) of what it was.

    P'(i) = P(i) - strength[c] * max(0, P(i) . vector + offset(i)) / |vector|^2 * vector

    Attributes:
        vector: (C,); zero = no change.
        offset: (B, N).
        strength: share >= 0 per row class.
    """

    vector: torch.Tensor
    offset: torch.Tensor
    strength: tuple[float, float, float]


@attrs.frozen(eq=False)
class FlowEdit:
    """An edit of what flows into located rows. The engine applies it on fused kernels.

    For a row of class c (STOCK, CORE, RING) and a key of class k:
        P(i) = sum_j softmax_j(logit + log table[c][k]) v_j
        O(i) = (1 - alpha[c]) * P'(i)  +  alpha[c] * noise
    with P' the projection of P, or P itself.

    Attributes:
        row_class: (B, N) long. Rows of class STOCK stay bitwise stock.
        table: 3 x 4 factors lambda >= 0, [row class][TEXT, SAFE, LOCATED, REFERENCE].
        alpha: share of noise per row class, 0..1.
        noise: "matched" to the output's mean and deviation per head, or "unit" N(0, 1).
        text_factor: (B, text) further factors for single text tokens, or None.
        reference_factor: (B, reference) further factors for single reference tokens, or None.
        columns: a ColumnScale applied to the whole call before the rows are written, or None.
        projection: a Projection of the rows, or None.
        text: whose text tokens the rows see: their "own", or in their place the keys and values of the
            "unconditional" pass (see Policy), to which table[c][TEXT] then applies.

    Raises:
        UVRError: `text_factor`, which is for the rows' own tokens, together with unconditional text.
    """

    row_class: torch.Tensor
    table: tuple[tuple[float, float, float, float], ...] = ((1.0,) * 4,) * 3
    alpha: tuple[float, float, float] = (0.0, 0.0, 0.0)
    noise: Literal["matched", "unit"] = "matched"
    text_factor: torch.Tensor | None = None
    reference_factor: torch.Tensor | None = None
    columns: ColumnScale | None = None
    projection: Projection | None = None
    text: Literal["own", "unconditional"] = "own"

    def __attrs_post_init__(self) -> None:
        if self.text == "unconditional" and self.text_factor is not None:
            raise UVRError("FlowEdit: text_factor is for a row's own text tokens; text='unconditional' replaces them")
