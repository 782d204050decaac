"""Noise in place of rows, and its share."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from matrices import generator

from uvr_core.ops.noise import blended_rows, matched_noise
from uvr_core.ops.rows import Rows, rows_of


def test_matched_noise_is_per_sample_and_leaves_the_global_generator_alone() -> None:
    x = torch.randn(3, 2, 8, 4, generator=generator(0)) * 3 + 1
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[0, :8], mask[1, 4:7] = True, True
    state, gens = torch.get_rng_state(), [generator(s) for s in (10, 11, 12)]
    together = matched_noise(x, rows_of(mask), gens)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(gens[2].get_state(), generator(12).get_state())  # an empty sample draws nothing
    assert not torch.equal(gens[1].get_state(), generator(11).get_state())

    alone = matched_noise(x[1:2, :, :3], rows_of(mask[1:2]), generator(11))
    assert torch.equal(together[1:2, :, :3], alone)
    assert alone.abs().min() > 0
    assert (together[1, :, 3:] == 0).all()
    assert (together[2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matched_noise_has_the_statistics_of_the_valid_rows(dtype: torch.dtype) -> None:
    h, n, d = 2, 256, 64
    center, spread = torch.tensor([5.0, -3.0])[:, None, None], torch.tensor([0.5, 4.0])[:, None, None]
    x = torch.full((1, h, n + 50, d), 1e3, dtype=dtype)  # padding far away: it must not count
    x[0, :, :n] = (torch.randn(h, n, d, generator=generator(0)) * spread + center).to(dtype)
    rows = rows_of(torch.arange(n + 50)[None] < n)
    rows = Rows(F.pad(rows.index, (0, 50)), F.pad(rows.valid, (0, 50)), rows.counts)
    got = matched_noise(x, rows, generator(1))[0, :, :n].float()
    error = 5 / math.sqrt(n * d)  # five standard errors
    assert ((got.mean((1, 2), keepdim=True) - center).abs() <= (error + 2e-3) * spread).all()
    assert ((got.std((1, 2), keepdim=True) / spread - 1).abs() <= error + 2e-3).all()

    plain = matched_noise(x, rows, generator(1), mean=0.0, std=1.0)[0, :, :n]
    assert torch.equal(plain, torch.randn(h, n, d, generator=generator(1)).to(dtype))
    given_stats = matched_noise(x, rows, generator(1), mean=center[None], std=spread[None])[0, :, :n]
    want = torch.randn(h, n, d, generator=generator(1)) * spread + center
    assert torch.equal(given_stats, want.to(dtype))


def test_matched_noise_wants_one_generator_per_sample() -> None:
    x, rows = torch.zeros(2, 1, 3, 2), rows_of(torch.ones(2, 3, dtype=torch.bool))
    one = generator(0)
    for wrong in (None, one, [one], [one, one], [one, generator(1), generator(2)]):
        with pytest.raises(ValueError, match="generators: expected 2 distinct"):
            matched_noise(x, rows, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"generators: expected torch\.Generators"):
        matched_noise(x, rows, [one, None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="std: expected shape"):
        matched_noise(x, rows, [one, generator(1)], std=torch.ones(2, 2, 1, 1))


def test_blended_rows_refuse_mismatches() -> None:
    new = torch.zeros(2, 1, 4, 2)
    with pytest.raises(ValueError, match="alpha: expected shape"):
        blended_rows(new, new, torch.ones(2, 3))
    with pytest.raises(ValueError, match="noise: expected shape"):
        blended_rows(new, new[:, :, :3], torch.ones(2, 4))
