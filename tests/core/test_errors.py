"""Errors say what they hold, and names that nobody has say which are near."""

from __future__ import annotations

import inspect

import pytest

from uvr_core import errors
from uvr_core.errors import ConformanceError, UnsafeContent, UVRError, did_you_mean


def test_one_class_catches_all() -> None:
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    assert len(classes) >= 9
    assert all(issubclass(kind, UVRError) for kind in classes)


def test_what_was_located_travels_with_the_error() -> None:
    error = UnsafeContent("weapon located", concept="weapon", samples=(1, 3), step=5)
    assert (str(error), error.concept, error.samples, error.step) == ("weapon located", "weapon", (1, 3), 5)
    assert (UnsafeContent("x").samples, UnsafeContent("x").step) == ((), -1)
    assert ConformanceError("x", report="all checks").report == "all checks"


@pytest.mark.parametrize(
    ("known", "hint"),
    [
        (["reweight", "block", "noise"], "; did you mean 'block'?"),
        (["zebra", "yak"], "; there are: yak, zebra."),
        ([], "; none is installed."),
    ],
)
def test_the_nearest_name_or_all_of_them(known: list[str], hint: str) -> None:
    assert did_you_mean("blok", known) == hint
