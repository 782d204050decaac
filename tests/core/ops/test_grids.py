"""Patches of two grids at the same place."""

from __future__ import annotations

import pytest
import torch

from uvr_core.ops.grids import around, facing, nearest


@pytest.mark.parametrize(("of", "among"), [((4, 6), (4, 6)), ((2, 3), (4, 6)), ((4, 6), (2, 3)), ((5, 3), (3, 7))])
def test_the_nearest_patch_is_the_one_that_holds_the_centre(of: tuple[int, int], among: tuple[int, int]) -> None:
    got = nearest(of, among).reshape(of)
    for row in range(of[0]):
        for column in range(of[1]):
            at = int((row + 0.5) / of[0] * among[0]), int((column + 0.5) / of[1] * among[1])
            assert got[row, column] == at[0] * among[1] + at[1]


def test_facing_values_are_those_at_the_same_place() -> None:
    values = torch.arange(2 * 6).reshape(2, 6)
    assert torch.equal(facing(values, (2, 3), (2, 3)), values)
    wide = facing(values, (2, 3), (4, 6)).reshape(2, 4, 6)
    assert torch.equal(wide, values.reshape(2, 2, 3).repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_around_a_patch_is_the_mean_of_those_on_the_grid() -> None:
    values = torch.randn(2, 3 * 4, 5)
    got, grid = around(values, (3, 4)).reshape(2, 3, 4, 5), values.reshape(2, 3, 4, 5)
    for row in range(3):
        for column in range(4):
            near = grid[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].flatten(1, 2)
            assert torch.allclose(got[:, row, column], near.mean(1), atol=1e-6)
