"""A direction taken out of rows, against float64."""

from __future__ import annotations

import pytest
import torch
from matrices import generator

from uvr_core.ops.project import projected_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projected_rows_take_the_positive_score_away_and_nothing_else(dtype: torch.dtype) -> None:
    b, h, r, d = 3, 2, 40, 8
    x = torch.randn(b, h, r, d, generator=generator(0)).to(dtype)
    vector = torch.randn(h * d, generator=generator(1)) * 3
    offset = torch.randn(b, r, generator=generator(2)) * 5
    strength = torch.rand(b, r, generator=generator(3)) * 1.5
    strength[:, ::4] = 0.0
    before = x.clone()
    got = projected_rows(x, vector, offset, strength)
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
    assert torch.equal(projected_rows(x, torch.zeros(8), ones, ones), x)
    with pytest.raises(ValueError, match=r"vector: expected shape \(8,\)"):
        projected_rows(x, torch.zeros(16), ones, ones)
    with pytest.raises(ValueError, match="offset: expected shape"):
        projected_rows(x, torch.zeros(8), torch.ones(1, 1), ones)
