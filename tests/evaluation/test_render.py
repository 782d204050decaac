"""How pages are written: from templates, with counts as every page says them."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from uvr_evaluation.render import count, interval, number, ratio, render
from uvr_evaluation.statistics import rate


def test_counts_come_before_rates() -> None:
    assert count(rate(26, 30)) == "26/30 (87%)"
    assert count(rate(26, 30), interval=True) == "26/30 (87%, 70–95)"
    assert interval(rate(26, 30)) == "26/30 (70% to 95%)"
    assert (count(None), count(rate(0, 0)), interval(rate(0, 0)), number(None)) == ("–", "–", "none", "–")
    assert (number(0.987, 1), ratio({"median": 1.0451, "range": (1.043, 1.047)})) == ("1.0", "1.045 (1.043 to 1.047)")


def test_html_is_escaped_and_markdown_is_not(tmp_path: Path) -> None:
    for name in ("page.html.j2", "page.md.j2"):
        (tmp_path / name).write_text("{{ [prompt, 1] | row }}\n")
    assert render(tmp_path / "page.md.j2", prompt="<b>") == "| <b> | 1 |\n"
    assert render(tmp_path / "page.html.j2", prompt="<b>") == "| &lt;b&gt; | 1 |\n"


def test_a_name_that_the_json_lacks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.md.j2").write_text("{{ figures.erased }}")
    with pytest.raises(jinja2.UndefinedError, match="erased"):
        render(tmp_path / "page.md.j2", figures={})
