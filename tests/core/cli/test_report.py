"""`uvr report`."""

from __future__ import annotations

import json

import pytest
from commands import ran, refused, registered


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "other/1"}', '{"schema": "uvr.report/1"}'])
def test_bad_report_file(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    assert "report.json" in refused("report", tmp_path)
    assert "no such report" in refused("report", tmp_path / "missing.json")


def test_other_results_are_shown_by_the_plugin_that_knows_their_schema(tmp_path):
    file = tmp_path / "measured.json"
    file.write_text('{"schema": "toy/1", "value": 7}')
    assert "expected schema 'uvr.report/1', got 'toy/1'" in refused("report", file)

    def page(files, whole):
        return f"{'page' if whole else 'text'} of {', '.join(path.name for path in files)}"

    with registered(uvr_pages={"toy/1": page}):
        assert ran("report", file).stdout == "text of measured.json\n"
        assert json.loads(ran("report", file, "--json").stdout)["value"] == 7
        ran("report", file, "--markdown", tmp_path / "page.md")
        assert (tmp_path / "page.md").read_text() == "page of measured.json"
