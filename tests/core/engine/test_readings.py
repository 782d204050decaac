"""What may be asked of a call: features with the facing reference token, flow contrasts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from driven import joint
from scripted import GRID, PATCHES, WIDTH, Script, play, scored

from uvr_core.adapter import Layout
from uvr_core.engine.readings import Compared, contrast, features, source_features
from uvr_core.errors import UVRError
from uvr_core.intercept.calls import AttentionCall
from uvr_core.ops.masks import ring_of
from uvr_core.tokens import Role


@pytest.mark.parametrize(("side", "error"), [(16, 1e-5), (64, 0.1)])
def test_a_contrast_from_some_patches_is_that_of_all(side: int, error: float) -> None:
    """Words that feed a place of their own, one of them the located place: up to 256 + 512 patches all are taken."""
    torch.manual_seed(3)
    layout, text = Layout((side, side)), 8
    key = torch.randn(2, 2, text + side * side, 16)
    query = torch.randn(2, 2, text + side * side, 16)
    core, there = np.zeros((2, side, side), bool), side // 4
    for word in range(text):  # a stripe of the picture looks at each word, the located square at word 0
        query[:, :, text + word * there * side : text + (word + 1) * there * side] += 0.3 * key[:, :, [word]]
    for sample, corner in enumerate((1, side // 2)):
        core[sample, corner : corner + there, corner : corner + there] = True
        rows = text + torch.from_numpy(core[sample].reshape(-1).nonzero()[0])
        query[sample, :, rows] += 0.5 * key[sample, :, [0]]
    ring = np.stack([ring_of(mask) for mask in core])
    call = AttentionCall("x", query, key, key, query, None, None)
    got = contrast(joint(call, layout), Compared.of(core, ring, key.device))[0]
    weight = (query @ key.mT / 4).softmax(-1).mean(1)[:, text:, :text]
    inside, rest = (torch.from_numpy(m.reshape(2, -1)).float() for m in (core, ~(core | ring)))
    want = (inside[:, None] @ weight)[:, 0] / inside.sum(1, True) / ((rest[:, None] @ weight)[:, 0] / rest.sum(1, True))
    assert (got / want - 1).abs().max() < error
    assert (got[:, 0] > 2.5).all()


def test_a_patch_is_scored_with_the_reference_token_that_faces_it() -> None:
    detector = Script([scored({}, {})] * 2, [None] * 2)
    _, outputs = play(detector)
    rows = outputs[0].transpose(1, 2).flatten(2)
    patches, reference = rows[:, 3 : 3 + PATCHES], rows[:, 3 + PATCHES :].reshape(2, 2, 3, WIDTH)
    assert torch.equal(detector.seen[0][..., :WIDTH], patches)
    facing = detector.seen[0][..., WIDTH:].reshape(2, *GRID, WIDTH)
    for (y, x), (there_y, there_x) in {(0, 0): (0, 0), (2, 3): (1, 2), (0, 2): (0, 1), (2, 0): (1, 0)}.items():
        assert torch.equal(facing[:, y, x], reference[:, there_y, there_x])


def test_without_references_a_patch_is_scored_alone() -> None:
    detector = Script([scored({}, {})], [None])
    play(detector, Layout(GRID), steps=1)
    assert detector.seen[0].shape == (2, PATCHES, WIDTH)


def test_two_references_are_averaged() -> None:
    detector = Script([scored({}, {})], [None])
    _, (output,) = play(detector, Layout(GRID, ((2, 3), (2, 3))), steps=1)
    rows = output.transpose(1, 2).flatten(2)[:, 3 + PATCHES :]
    assert torch.allclose(detector.seen[0][:, 0, WIDTH:], (rows[:, 0] + rows[:, 6]) / 2)


def test_padding_has_no_contrast() -> None:
    """Though located patches look at it alone; two layouts of as many keys are told apart."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 3 + 2 + PATCHES, 16, generator=generator) for _ in range(2))
    core = np.zeros((1, *GRID), bool)
    core[0, 0, 0] = True
    query[:, :, 5] = 4 * key[:, :, 3]
    compared = Compared.of(core, core, key.device)

    def of_text(padding: int) -> torch.Tensor:
        call = AttentionCall("x", query, key, key, query, None, None)
        return contrast(joint(call, Layout(GRID, padding=padding)), compared)[0]

    whole, padded = of_text(0), of_text(2)
    assert (whole.shape, padded.shape) == ((1, 5), (1, 3))
    torch.testing.assert_close(whole[:, :3], padded)
    assert whole[0].argmax() == 3


def test_references_out_of_a_cache_have_no_features() -> None:
    """Text and output ask, references are keys alone: a patch is scored without what faces it."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, 3 + PATCHES, 16, generator=generator)
    key = torch.randn(1, 2, 3 + PATCHES + 6, 16, generator=generator)
    call = joint(AttentionCall("x", query, key, key, query, None, None), Layout(GRID, ((2, 3),)))
    assert call.keys.count(Role.REFERENCE) == 6
    assert torch.equal(features(call), query[:, :, 3:].transpose(1, 2).flatten(2))


def test_a_source_is_read_at_its_own_tokens_and_around_them() -> None:
    """Two references, one of another grid than the output's: what faces a patch, and the mean of the two."""
    layout = Layout((2, 2), ((2, 2), (4, 4)))
    query = torch.randn(2, 2, 3 + 4 + 4 + 16, 8, generator=torch.Generator().manual_seed(0))
    call = joint(AttentionCall("x", query, query, query, query, None, None), layout)
    got, rows = source_features(call), query.transpose(1, 2).flatten(2)
    small, large = rows[:, 7:11], rows[:, 11:].reshape(2, 4, 4, 16)
    assert got.shape == (2, 4, 32)
    facing = large[:, 1::2, 1::2].flatten(1, 2)
    assert torch.allclose(got[..., :16], (small + facing) / 2, atol=1e-6)
    near = large[:, :3, :3].flatten(1, 2).mean(1)  # of the patch at row 1, column 1, which faces the first
    assert torch.allclose(got[:, 0, 16:], (small.mean(1) + near) / 2, atol=1e-6)
    alone = joint(AttentionCall("x", query, query, query, query, None, None), Layout((4, 6)))
    with pytest.raises(UVRError, match="no reference tokens among the queries"):
        source_features(alone)
