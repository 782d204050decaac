"""Readings of attention against the materialised form in float64."""

from __future__ import annotations

import math

import pytest
import torch
from matrices import assert_exact_to, contrast_masks, contrast_reference, generator, qkv, stock_mask, weights

from uvr_core.ops import mass as reading
from uvr_core.ops.mass import contrast_share, flow_contrast, mass_on, patch_scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patch_scores_are_the_mean_over_anchors(dtype: torch.dtype) -> None:
    b, n, c = 2, 6, 3072
    out = torch.randn(b, n, c, generator=generator(0)).to(dtype)
    anchors = torch.randn(5, c, generator=generator(1)).to(dtype) + 1
    each = torch.stack([(out.double() * a.double()).sum(-1) for a in anchors]).mean(0)
    got = patch_scores(out, anchors)
    assert got.dtype == torch.float32
    assert_exact_to(got, each / c)
    assert_exact_to(patch_scores(out, anchors, normaliser=math.sqrt(c)) / math.sqrt(c), each / c)
    assert_exact_to(patch_scores(out, anchors[2]), (out.double() @ anchors[2].double()) / c)
    for wrong in (anchors[:, 1:], anchors[:0], anchors[None]):
        with pytest.raises(ValueError, match="anchor: expected"):
            patch_scores(out, wrong)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="normaliser"):
            patch_scores(out, anchors, normaliser=bad)


@pytest.mark.parametrize("kind", ["none", "bool-keys", "bool-2d", "float-full"])
@pytest.mark.parametrize("m", [0, 3, 32, 70])  # none, fewer than, exactly and more than two times the head size
def test_mass_on_equals_the_matrix_form(m: int, kind: str) -> None:
    b, h, sq, sk, d = 2, 2, 7, 80, 32
    q, k, _ = qkv(m, b, h, sq, sk, d)
    mask = stock_mask(kind, b, h, sq, sk)
    key_weight = torch.rand(b, sk, m, generator=generator(2))
    a = weights(q.double(), k.double(), mask)
    assert_exact_to(mass_on(q, k, key_weight, attn_mask=mask), a @ key_weight.double()[:, None])
    on = key_weight[0] > 0.5
    assert_exact_to(
        mass_on(q, k, on, attn_mask=mask, scale=0.1),
        weights(q.double(), k.double(), mask, scale=0.1) @ on.double(),
    )
    with pytest.raises(ValueError, match="key_weight: expected"):
        mass_on(q, k, key_weight[:, 1:])


@pytest.mark.parametrize("kind", ["none", "bool-keys", "bool-2d", "float-full"])
def test_token_contrast_equals_the_matrix_form(kind: str) -> None:
    b, h, sq, sk, d = 3, 2, 14, 90, 32  # up to 90 text tokens over a head size of 32: three chunks
    q, k, _ = qkv(1, b, h, sq, sk, d)
    mask = stock_mask(kind, b, h, sq, sk)
    rows, others, keys = contrast_masks(b, sq, sk)
    got = flow_contrast(q, k, contrast_share(rows, others), keys, attn_mask=mask)
    want = contrast_reference(weights(q.double(), k.double(), mask).mean(1), rows, others, keys)
    size = want.clamp(min=1).nan_to_num(posinf=1.0)  # a ratio: the error is relative to its size
    assert_exact_to(got / size, want / size)
    assert (want[:2] > 1.5).any()
    listed_rows = (rows | others).sum(1)
    assert listed_rows[0] < listed_rows.max()
    assert (got[-1] == 0).all()


def test_token_contrast_edges() -> None:
    q, k, _ = qkv(1, 1, 2, 4, 5, 16)
    rows, others = torch.tensor([[True, True, False, False]]), torch.tensor([[False, False, True, False]])
    keys, share, nobody = [slice(0, 5)], contrast_share(rows, others), torch.zeros(1, 4, dtype=torch.bool)
    hidden = torch.ones(4, 5, dtype=torch.bool)
    hidden[:, 1] = False  # nobody sees key 1
    hidden[2, 2] = False  # the others do not see key 2
    got = flow_contrast(q, k, share, keys, attn_mask=hidden)[0]
    assert got[1] == 0
    assert got[2] == math.inf
    assert got[[0, 3, 4]].isfinite().all()
    assert flow_contrast(q, k, share, []).shape == (1, 0)
    assert (flow_contrast(q, k, contrast_share(rows, nobody), keys) == 0).all()
    with pytest.raises(ValueError, match="other_mask: expected bool"):
        contrast_share(rows, others.long())
    with pytest.raises(ValueError, match="share: expected"):
        flow_contrast(q, k, share[:, :1], keys)


@pytest.mark.parametrize("kind", ["none", "bool-keys", "float-full"])
def test_a_contrast_in_pieces_is_that_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    b, h, sq, sk, d = 2, 2, 200, 210, 16
    q, k, _ = qkv(1, b, h, sq, sk, d)
    mask, (rows, others, keys) = stock_mask(kind, b, h, sq, sk), contrast_masks(b, sq, sk)
    whole = flow_contrast(q, k, contrast_share(rows, others), keys, attn_mask=mask)
    monkeypatch.setattr(reading, "_LEAST_QUERIES", 50)
    torch.testing.assert_close(flow_contrast(q, k, contrast_share(rows, others), keys, attn_mask=mask), whole)
