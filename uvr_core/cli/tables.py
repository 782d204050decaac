"""Tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence

from ..files import printable


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None) -> None:
    """Print a table, as wide as the terminal unless told. Cells are plain text: no markup is read from them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    page = Table(*columns, title=title or None, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        page.add_row(*(Text(printable(str(cell)), overflow="fold") for cell in row))
    Console(width=width).print(page)
