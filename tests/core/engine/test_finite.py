"""Edits that are not finite are noticed, whenever in the run they were made."""

from __future__ import annotations

import pytest
import torch
from driven import plan_of
from runner import make_bank

from uvr_core import UVRError
from uvr_core.engine.finite import Finite
from uvr_plugins.detectors import Oracle
from uvr_plugins.policies import Block


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_number_in_an_earlier_edit_raises_and_names_the_policies(bad: float) -> None:
    finite = Finite([plan_of(make_bank(), Oracle(None), Block())])
    edited = torch.zeros(2, 3, 4)
    edited[1, 2, 3] = bad
    finite.watch(edited)
    finite.watch(torch.zeros(3))
    with pytest.raises(UVRError, match=r"NaN or Inf \(policies: 'block'\)"):
        finite.check()


def test_nothing_edited_and_finite_edits_pass() -> None:
    finite = Finite([])
    finite.check()
    finite.watch(torch.full((2, 2), 1e30))
    finite.check()
