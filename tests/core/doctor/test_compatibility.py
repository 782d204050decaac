"""The compatibility matrix as data: whole, tested by topic, and what its page says."""

from __future__ import annotations

from pathlib import Path

from rig import PIPELINES

from uvr_core.doctor.compatibility import MATRIX, SITUATIONS, markdown

ROOT = Path(__file__).parents[3]


def test_every_topic_has_its_tests_and_every_row_says_what_it_must() -> None:
    files = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "compatibility").glob("test_*.py")}
    assert files == set(MATRIX)
    assert [row for rows in MATRIX.values() for row in rows] == list(SITUATIONS)
    assert len({which for row in SITUATIONS for which in row.cases}) == sum(len(row.cases) for row in SITUATIONS)
    assert {name for row in SITUATIONS for name in row.pipelines} == set(PIPELINES)
    assert all(row.says for row in SITUATIONS if row.outcome != "regulated exactly")
    assert all(row.note for row in SITUATIONS if row.outcome == "refused by name")


def test_the_page_is_the_table() -> None:
    page = ROOT / "docs" / "compatibility.md"
    assert page.read_text() == markdown(), "run `python -m uvr_core.doctor.compatibility > docs/compatibility.md`"
