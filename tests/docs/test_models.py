"""docs/models.md is what tools/models.py writes. If not: `PYTHONPATH=tests python tools/models.py`."""

from __future__ import annotations

from conformance import built_in
from documents import models


def test_the_page_is_up_to_date() -> None:
    """But for the kit's results, which test_families.py holds against what it finds."""
    page = models()
    results = page.shown()
    assert set(results) == set(built_in("adapter"))
    assert page.PAGE.read_text() == page.page(results)
