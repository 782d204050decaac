"""Scaled columns of two concepts, computed by hand."""

from __future__ import annotations

import numpy as np
import torch
from calls import GRID, KEYS, PATCHES, TEXT, forward, rule, spans, text_call, together, two_masks
from driven import Driven
from scipy import ndimage
from torch import Tensor

from uvr_core.adapter import Layout
from uvr_plugins.policies import Block, UvrReleased


def test_column_scales_multiply_and_leave_claimed_rows() -> None:
    """Two concepts under "uvr-released" in editing: by hand, with weights that are not normalised again."""
    one, two = two_masks()
    policy = UvrReleased(strong=0.2, mild=0.5, boost=1.1)
    call = text_call(21, TEXT, "end")
    _, output, reference = spans("end", True)
    layout = Layout(GRID, ((2, 3),))
    facing = [((2 * r + 1) * 4 // 4) * 5 + (2 * c + 1) * 5 // 6 for r in range(2) for c in range(3)]

    def scale(where: np.ndarray) -> tuple[Tensor, Tensor]:
        """(3, queries, keys) factors, and which patches are located (3, N)."""
        wide = np.stack([ndimage.binary_dilation(m, np.ones((3, 3))) if m.any() else m for m in where])
        core, ring = (torch.from_numpy(x.reshape(3, PATCHES)) for x in (where, wide & ~where))
        factor = torch.ones(3, KEYS, KEYS, dtype=torch.float64)
        source = torch.where(core[:, facing], 0.2, torch.where(ring[:, facing], 0.5, 1.0)).double()
        for sample in np.flatnonzero(where.any((1, 2))):
            factor[sample, : output.stop, reference] = source[sample]
            factor[sample, output, : output.stop] = 1.1
        return factor, core | ring

    (a, mine), (b, _) = scale(one), scale(two)
    weight = (call.query.double() @ call.key.double().mT * 8**-0.5).softmax(-1)
    first, both = ((weight * f[:, None]) @ call.value.double() for f in (a, a * b))
    claimed = torch.zeros(3, KEYS, dtype=torch.bool)
    claimed[:, output] = mine
    expected = torch.where(claimed[:, None, :, None], first, both)
    session = Driven([rule(policy, where=one), rule(policy, where=two)])
    edited = forward(session, call, 0.9, layout)
    assert edited is not None
    assert (edited.double() - expected).abs().max() < 5e-6
    assert torch.equal(edited[1], call.output[1])
    _, blocked_first, _ = together(rule(Block(), where=one), rule(policy, where=two))
    _, blocked, _ = together(rule(Block(), where=one))
    assert torch.equal(blocked_first.transpose(1, 2)[claimed], blocked.transpose(1, 2)[claimed])
