"""What a baseline is asked."""

from __future__ import annotations

from typing import Any

from uvr_core.protocols import Baseline, ConceptTerms, Request


class Nothing:
    def generate(self, request: Request) -> list[Any]:
        return [None] * request.batch


def test_a_request_counts_its_prompts() -> None:
    request = Request(object(), {"prompt": ["a", "b", "c"]}, (ConceptTerms("x", ("x",), ("x",)),))
    assert request.batch == 3
    assert (request.banks, dict(request.judges)) == ((), {})
    assert isinstance(Nothing(), Baseline)
    assert Nothing().generate(request) == [None, None, None]
