"""Checks of single values, as attrs validators: one set for objects built in code and for objects read from files.

Each is made for the error that it raises: `threshold: float = attrs.field(validator=finite(ConceptMismatch))`. The
message names class and attribute, what was expected and what came.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import attrs

from .errors import UVRError

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]

MAX_COUNT = 2**31
LARGEST = 3.4028234663852886e38  # of float32, in which scores are computed: no score reaches a larger threshold
MAX_TEXT = 200  # characters of a name


def is_finite(value: object) -> bool:
    """Whether value is a number (bool is none) that is finite in float32."""
    number: Any = value  # a whole number may be too large for a float
    return not isinstance(value, bool) and isinstance(value, Real) and -LARGEST <= number <= LARGEST


def _check(expected: str, holds: Callable[[Any], bool], error: type[UVRError]) -> Validator:
    def validate(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not holds(value):
            where = f"{type(instance).__name__.lower()}.{attribute.name}"
            raise error(f"{where}: expected {expected}, got {reprlib.repr(value)}")

    return validate


def finite(error: type[UVRError] = UVRError) -> Validator:
    """A number, finite in float32."""
    return _check("a finite number", is_finite, error)


def share(error: type[UVRError] = UVRError) -> Validator:
    """A number in 0..1."""
    return _check("a number in 0..1", lambda value: is_finite(value) and 0 <= value <= 1, error)


def count(error: type[UVRError] = UVRError) -> Validator:
    """A whole number from 1 to MAX_COUNT."""

    def holds(value: Any) -> bool:
        return not isinstance(value, bool) and isinstance(value, Integral) and 1 <= int(value) <= MAX_COUNT

    return _check(f"a whole number from 1 to {MAX_COUNT}", holds, error)


def window(error: type[UVRError] = UVRError) -> Validator:
    """(high, low), two finite noise levels with high >= low."""

    def holds(value: Any) -> bool:
        pair = isinstance(value, tuple) and len(value) == 2 and all(map(is_finite, value))
        return pair and value[0] >= value[1]

    return _check("(high, low), two finite noise levels", holds, error)


def printable(error: type[UVRError] = UVRError, most: int = MAX_TEXT) -> Validator:
    """Text of 1 to `most` characters that may be printed on a terminal."""

    def holds(value: Any) -> bool:
        return isinstance(value, str) and value.isprintable() and 0 < len(value) <= most

    return _check(f"1 to {most} printable characters", holds, error)


def instance(kind: type, error: type[UVRError] = UVRError) -> Validator:
    """An object of a class."""
    return _check(kind.__name__, lambda value: isinstance(value, kind), error)
