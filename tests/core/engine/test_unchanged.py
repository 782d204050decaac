"""What a plugin is shown may be read, and written into only as a copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from uvr_core import UVRError
from uvr_core.engine.unchanged import unchanged, watchable


@pytest.mark.parametrize("shown", [watchable, lambda x: x], ids=["counted", "compared"])
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("write", [lambda x: x.mul_(2), lambda x: x[0].zero_(), lambda x: x.t().__setitem__(0, 2.0)])
def test_writing_is_noticed_through_views_too(write: Any, inference: bool, shown: Any) -> None:
    with torch.inference_mode(inference):
        tensor = shown(torch.ones(2, 2))
        with pytest.raises(UVRError, match="policy 'x' wrote into a tensor"):
            with unchanged("policy 'x'", (torch.zeros(2), tensor)):
                write(tensor)
        with unchanged("policy 'x'", (torch.full((2,), torch.nan), tensor)):
            write(tensor.clone())


def test_a_watchable_copy_is_made_in_inference_mode_alone() -> None:
    tensor = torch.ones(2)
    assert watchable(tensor) is tensor
    with torch.inference_mode():
        assert watchable(tensor) is tensor
        assert not watchable(torch.ones(2)).is_inference()


def test_reading_and_copies_pass_and_errors_go_through() -> None:
    shown = torch.ones(2, 2)
    with unchanged("policy 'x'", (shown,)):
        shown.clone().mul_(2)
        assert (shown + 1).sum() == 8
    with pytest.raises(ZeroDivisionError), unchanged("policy 'x'", (shown,)):
        raise ZeroDivisionError
