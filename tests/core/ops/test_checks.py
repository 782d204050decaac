"""Shape errors name the argument, what was expected and what came."""

from __future__ import annotations

import pytest
import torch

from uvr_core.ops.checks import check_attention, check_shape, check_tokens, described


def test_queries_keys_and_values_must_belong_together() -> None:
    q, k = torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 7, 4)
    check_attention(q, k, k)
    for wrong in (k[:1], k[:, :1], k[..., :2]):
        with pytest.raises(ValueError, match=r"k: expected \(2, 3, Sk, 4\) as q has it"):
            check_attention(q, wrong, k)
    with pytest.raises(ValueError, match=r"v: expected shape \(2, 3, 7, 4\)"):
        check_attention(q, k, k[:, :, :6])


def test_the_message_holds_shape_and_dtype() -> None:
    with pytest.raises(ValueError, match=r"out: expected \(B, H, tokens, D\), got \(2, 3\) bfloat16"):
        check_tokens("out", torch.zeros(2, 3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"alpha: expected shape \(2,\), got \(3,\) int64"):
        check_shape("alpha", torch.zeros(3, dtype=torch.long), (2,))
    assert described(torch.zeros(1)) == "(1,) float32"
