"""Directions and units."""

from __future__ import annotations

import numpy as np
import pytest

from uvr_analysis.flows import LOCATED, OUTPUT, REFERENCE, TEXT, Flows
from uvr_core.errors import UVRError


def test_units() -> None:
    """Direction, mass per token, and mass in units of uniform attention."""
    share = np.full((1, 4, 2, 5, 5), np.nan, np.float32)
    share[..., OUTPUT, :LOCATED] = [0.3, 0.5, 0.2]
    share[..., TEXT, :LOCATED] = [0.6, 0.4, 0.0]
    counts = np.array([[10, 20, 10, 0, 0]])
    flows = Flows(share, counts, ("a", "b"), [1.0, 0.8, 0.5, 0.2], (4, 5), [None])
    assert flows.curve("text", "output")[0] == pytest.approx([0.3] * 4)  # output reads text
    assert flows.curve("output", "text")[0] == pytest.approx([0.4] * 4)
    assert flows.by_block("reference", "output").shape == (1, 4, 2)
    assert flows.density[0, 0, 0, OUTPUT, TEXT] == pytest.approx(0.03)
    assert flows.lift[0, 0, 0, OUTPUT, OUTPUT] == pytest.approx(1.0)
    assert flows.lift[0, 0, 0, OUTPUT, REFERENCE] == pytest.approx(0.8)
    with pytest.raises(UVRError, match="did you mean 'output'"):
        flows.curve("text", "outpt")
