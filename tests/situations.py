"""The compatibility matrix, run: each topic's cases by name, and what its rows promise.

A regulated image equals that of a reference run of the same weights, and every attention call that was edited is
checked against the equation (the `witness` of tests/compatibility/conftest.py). A refusal is an UVRError that names
the feature and what to do. What the stock library cannot do fails in the same way without UVR.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from rig import Rig, reference, seen_through

import uvr_core
from uvr_core.doctor.compatibility import MATRIX, Outcome, Situation

Pair = tuple[torch.Tensor, torch.Tensor]  # what came out, and what should
Attempt = Callable[[], object]  # which is refused
Case = Callable[[Rig], Iterator[Pair] | Iterator[Attempt]]


class Topic:
    """The rows of one topic of the matrix; `cases` is what their names stand for."""

    def __init__(self, name: str):
        self.rows = MATRIX[name]
        self.cases: dict[str, Case] = {}

    def case(self, name: str) -> Callable[[Case], Case]:
        def keep(function: Case) -> Case:
            self.cases[name] = function
            return function

        return keep

    def both_orders(
        self, name: str, feature: Callable[[Rig], object], expected: Callable[[Rig], torch.Tensor], **options: Any
    ) -> None:
        """Two situations: a feature switched on before attach, and after."""

        def before(rig: Rig) -> Iterator[Pair]:
            yield rig.regulated_run(before=feature, **options), expected(rig)

        def after(rig: Rig) -> Iterator[Pair]:
            yield rig.regulated_run(after=feature, **options), expected(rig)

        self.cases[f"{name}, before attach"], self.cases[f"{name}, after attach"] = before, after

    def neither_order(self, name: str, feature: Callable[[Rig], object], **options: Any) -> None:
        """Two situations: as above, but nothing comes out."""

        def before(rig: Rig) -> Iterator[Attempt]:
            yield lambda: rig.regulated_run(before=feature, **options)

        def after(rig: Rig) -> Iterator[Attempt]:
            yield lambda: rig.regulated_run(after=feature, **options)

        self.cases[f"{name}, before attach"], self.cases[f"{name}, after attach"] = before, after

    def regulated_exactly(self) -> Callable[..., None]:
        @self._every_case("regulated exactly")
        def test(row: Situation, which: str, name: str, witness: Any) -> None:
            skip_without(row.needs)
            rig = Rig(name)
            stock, compared = rig.run(), 0
            for got, expected in self.cases[which](rig):
                assert torch.isfinite(got).all()
                torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
                compared += 1
            assert compared
            assert witness.edited
            assert not seen_through(rig)
            assert stock.shape == expected.shape

        return test

    def refused_by_name(self) -> Callable[..., None]:
        @self._every_case("refused by name")
        def test(row: Situation, which: str, name: str) -> None:
            skip_without(row.needs)
            rig, attempts = Rig(name), 0
            for attempt in self.cases[which](rig):
                with pytest.raises(uvr_core.UVRError) as caught:
                    attempt()
                assert row.says in str(caught.value)
                attempts += 1
            assert attempts
            assert not seen_through(rig)

        return test

    def stock_cannot(self) -> Callable[..., None]:
        @self._every_case("stock cannot")
        def test(row: Situation, which: str, name: str) -> None:
            for regulated in (False, True):
                for attempt in self.cases[which](Rig(name, regulated)):
                    with pytest.raises(Exception, match=re.escape(row.says)) as caught:
                        attempt()
                    assert not isinstance(caught.value, uvr_core.UVRError)

        return test

    def complete(self) -> Callable[[], None]:
        def test() -> None:
            assert sorted(self.cases) == sorted(which for row in self.rows for which in row.cases)

        return test

    def _every_case(self, outcome: Outcome) -> pytest.MarkDecorator:
        """Every case of that outcome on every pipeline."""
        parameters = [
            pytest.param(row, which, name, id=f"{which}-{name}")
            for row in self.rows
            if row.outcome == outcome
            for which in row.cases
            for name in row.pipelines
        ]
        return pytest.mark.parametrize(("row", "which", "name"), parameters)


def skip_without(distribution: str) -> None:
    """Skip the test, by name, unless the distribution is installed."""
    if distribution:
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"needs {distribution}")


def plain(rig: Rig) -> torch.Tensor:
    return reference(rig.name)
