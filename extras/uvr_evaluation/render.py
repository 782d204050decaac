"""Pages as Jinja templates over their JSON: how counts and numbers are said, and where templates lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

OWN = Path(__file__).parent / "templates"
NONE = "–"


def render(template: Path, **values: Any) -> str:
    """A page. Templates beside it and those of this package (macros.md.j2) can be included; an unknown name raises.

    Markdown is written as it is; of HTML templates every value is escaped.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, OWN]),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"count": count, "number": number, "interval": interval, "ratio": ratio, "row": row}
    return environment.get_template(template.name).render(**values)


def count(cell: Mapping[str, Any] | None, interval: bool = False) -> str:
    """ "26/30 (87%)", with the 95% interval if asked."""
    if cell is None or not cell["of"]:
        return NONE
    low, high = cell["ci95"]
    more = f", {100 * low:.0f}–{100 * high:.0f}" if interval else ""
    return f"{cell['hits']}/{cell['of']} ({100 * cell['rate']:.0f}%{more})"


def interval(cell: Mapping[str, Any]) -> str:
    """ "26/30 (70% to 95%)": hits, of how many, the 95% interval."""
    low, high = cell["ci95"]
    return f"{cell['hits']}/{cell['of']} ({low:.0%} to {high:.0%})" if cell["of"] else "none"


def number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def ratio(cell: Mapping[str, Any]) -> str:
    """ "1.045 (1.043 to 1.047)": median and range."""
    low, high = cell["range"]
    return f"{cell['median']:.3f} ({low:.3f} to {high:.3f})"


def row(cells: Iterable[object]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"
