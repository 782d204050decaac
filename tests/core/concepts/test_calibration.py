"""How a bank is to be used: numbers that no run could use are refused when they are made."""

from __future__ import annotations

from typing import Any

import pytest

from uvr_core import Calibration, ConceptMismatch, TextCarriers


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("probe", "", "probe: expected"),
        ("threshold", float("nan"), "threshold: expected a finite number"),
        ("threshold", "high", "threshold: expected a finite number"),
        ("margin", float("inf"), "margin: expected a finite number"),
        ("margin", -0.5, "margin: expected a number >= 0"),
        ("measured", [1], "measured: expected dict"),
        ("grow", float("nan"), "grow: expected a finite number"),
        ("grow", 0.5, "grow: expected at most the threshold 0.0, got 0.5"),
    ],
)
def test_what_tells_the_text_is_checked(field: str, value: Any, says: str) -> None:
    with pytest.raises(ConceptMismatch, match=says):
        TextCarriers(**{"probe": "a", "threshold": 0.0, field: value})


def test_a_threshold_rises_for_a_smaller_budget() -> None:
    plain = Calibration("contrast", "a", (1.0, 0.0), 2.0)
    assert plain.threshold_at(0.01) is None
    known = Calibration("contrast", "a", (1.0, 0.0), 2.0, tail=(1.5, 1.0), benign=100)
    assert known.threshold_at(0.5) == 2.0
    assert (known.threshold_at(1e-6) or 0) > 2.0
    with pytest.raises(ConceptMismatch, match="at most 1 benign images"):
        Calibration("contrast", "a", (1.0, 0.0), 2.0, tail=(1.5, 1.0), benign=1)
