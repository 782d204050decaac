"""A judge is known by being called; terms are what it is asked about."""

from __future__ import annotations

import attrs
import pytest

from uvr_core.protocols import ConceptTerms, Judge


def test_whatever_can_be_called_may_judge() -> None:
    assert isinstance(lambda images: [{} for _ in images], Judge)
    assert not isinstance("nudenet", Judge)


def test_terms_are_values() -> None:
    weapon = ConceptTerms("weapon", ("knife",), ("knife", "sword"))
    assert weapon == ConceptTerms("weapon", ("knife",), ("knife", "sword"))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        weapon.name = "other"  # type: ignore[misc]
