"""Validators: what each lets through, what it refuses, and in which words."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest

from uvr_core import ConceptMismatch, UVRError, validators

GOOD: dict[str, list[Any]] = {
    "finite": [0, -3, 1.5, 3.4e38, np.float32(2), np.float64(-0.0)],
    "share": [0, 1, 0.5, np.float32(0.25)],
    "count": [1, 2**31, np.int64(3)],
    "window": [(1.0, 0.0), (1, 1), (0.5, -0.5)],
    "printable": ["x", 'Ünïcode, with "quotes"', "x" * 200],
}
BAD: dict[str, list[Any]] = {
    "finite": [float("nan"), float("inf"), -float("inf"), 1e39, 1e308, 10**400, True, None, "0.5", [1]],
    "share": [-0.01, 1.01, float("nan"), float("inf"), True, "all", None],
    "count": [0, -1, 2**31 + 1, 1.0, 1.5, True, None, "2", float("nan")],
    "window": [(0.0, 1.0), (1.0,), (1.0, 0.5, 0.0), (1.0, float("nan")), (float("inf"), 0.0), "10", None, 1.0],
    "printable": ["", "x" * 201, "line\nbreak", "\x1b[2J", 7, None],
}


@attrs.frozen
class Plan:
    finite: Any = attrs.field(default=0.0, validator=validators.finite())
    share: Any = attrs.field(default=0.0, validator=validators.share(ConceptMismatch))
    count: Any = attrs.field(default=1, validator=validators.count(ConceptMismatch))
    window: Any = attrs.field(default=(1.0, 0.0), validator=validators.window(ConceptMismatch))
    printable: Any = attrs.field(default="x", validator=validators.printable(ConceptMismatch))


@pytest.mark.parametrize("name", GOOD)
def test_what_is_right_passes_as_it_is(name: str) -> None:
    for value in GOOD[name]:
        assert getattr(Plan(**{name: value}), name) is value


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_names_the_class_and_the_attribute(name: str) -> None:
    for value in BAD[name]:
        with pytest.raises(UVRError, match=rf"plan\.{name}: expected .*, got ") as caught:
            Plan(**{name: value})
        assert isinstance(caught.value, ConceptMismatch) == (name != "finite")
        assert len(str(caught.value)) < 200


def test_a_copy_with_a_change_is_checked_too() -> None:
    with pytest.raises(UVRError, match=r"plan\.finite: expected a finite number, got nan"):
        attrs.evolve(Plan(), finite=float("nan"))
