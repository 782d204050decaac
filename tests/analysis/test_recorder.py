"""Masks that are known before or come after, and what an image without the concept counts for."""

from __future__ import annotations

from typing import Any

import numpy as np
from flowing import MASKS, measured

from uvr_analysis.flows import LOCATED
from uvr_analysis.summary import to_dict


def test_masks_that_come_late_tell_readers_apart_and_not_what_is_read() -> None:
    asked = []

    def judge(images: Any, grid: tuple[int, int]) -> np.ndarray:
        asked.append((len(images), grid))
        return MASKS[: len(images)]

    late, ahead = measured("flux-kontext", masks=judge), measured("flux-kontext", masks=MASKS)
    assert asked == [(2, (8, 8))]
    np.testing.assert_allclose(late.share[..., :LOCATED], ahead.share[..., :LOCATED], atol=1e-6)
    assert np.isnan(late.share[..., LOCATED:]).all()
    assert np.isfinite(ahead.share).all()
    assert late.counts.tolist() == ahead.counts.tolist()
    assert ("text", "located") in late.directions()
    assert ("located", "rest") not in late.directions()
    assert ("located", "rest") in ahead.directions()


def test_an_image_without_the_concept_counts_in_no_located_flow() -> None:
    flows = measured("flux", masks=np.stack([MASKS[0], np.zeros((8, 8), bool)]))
    assert np.isnan(flows.share[1, :, :, LOCATED]).all()
    assert to_dict(flows)["directions"]["text to located"]["images"] == 1
    assert to_dict(flows)["directions"]["text to rest"]["images"] == 2
