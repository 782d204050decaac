"""What a policy gives must be an edit of the call it was asked about; the error names the policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calls import rule, together, two_masks

from uvr_core import UVRError
from uvr_core.protocols import FlowEdit, KeyWeights, MaskOptions, Reweight, row_classes


class Gives:
    """A policy that gives what it was made with."""

    name, masks = "gives", MaskOptions(ring=0)

    def __init__(self, make: Any):
        self._make = make

    def edit(self, located: Any, call: Any) -> Any:
        return self._make(located, call)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda located, call: located.core, "returned Tensor; expected a FlowEdit or None"),
        (lambda located, call: FlowEdit(row_classes(located)[:, 1:], Reweight()), "FlowEdit.rows: expected"),
        (
            lambda located, call: FlowEdit(
                row_classes(located), Reweight(text_factor=torch.ones(len(located.core), call.text + 1))
            ),
            "Reweight.text_factor: expected",
        ),
    ],
)
def test_what_is_no_edit_of_the_call_is_an_error(make: Any, says: str) -> None:
    one, _ = two_masks()
    with pytest.raises(UVRError, match=says) as caught:
        together(rule(Gives(make), where=one))
    assert "policy 'gives'" in str(caught.value)


def test_rows_that_it_writes_into_are_an_error_of_its() -> None:
    def write(located: Any, call: Any) -> FlowEdit:
        return FlowEdit(row_classes(located).zero_(), Reweight(KeyWeights(text=0.0)))

    with pytest.raises(UVRError, match="wrote into a tensor that it was shown"):
        together(rule(Gives(write), where=two_masks()[0]))
