"""What a plugin is shown may be read, and written into only as a copy."""

from __future__ import annotations

import pytest
import torch

from uvr_core import UVRError
from uvr_core.engine.unchanged import unchanged


@pytest.mark.parametrize("write", [lambda x: x.mul_(2), lambda x: x[0].zero_(), lambda x: x.t().__setitem__(0, 1.0)])
def test_writing_is_noticed_through_views_too(write: object) -> None:
    with pytest.raises(UVRError, match="policy 'x' wrote into a tensor"):
        with unchanged("policy 'x'", (torch.zeros(2), shown := torch.ones(2, 2))):
            write(shown)  # type: ignore[operator]


def test_reading_and_copies_pass_and_errors_go_through() -> None:
    shown = torch.ones(2, 2)
    with unchanged("policy 'x'", (shown,)):
        shown.clone().mul_(2)
        assert (shown + 1).sum() == 8
    with pytest.raises(ZeroDivisionError), unchanged("policy 'x'", (shown,)):
        raise ZeroDivisionError
