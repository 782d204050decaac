"""`uvr prompt-sets`: the published sets that `uvr eval --prompts hub:NAME` knows."""

from __future__ import annotations

from typing import Any

import attrs
import click

from uvr_core.cli.options import json_option
from uvr_core.cli.tables import table
from uvr_core.files import to_json

from .published import PREFIX, published


@click.command("prompt-sets")
@json_option
def prompt_sets(as_json: bool) -> None:
    """List the published prompt sets that have a name: where each is kept, its licence, whether it is gated, and what
    of that was not verified. None is shipped."""
    rows: list[dict[str, Any]] = [attrs.asdict(each) for each in published().values()]
    if as_json:
        click.echo(to_json({"prompt_sets": rows}))
        return
    cells = [
        (
            PREFIX + r["name"],
            r["repository"] or r["url"],
            r["rows"] or "",
            (r["licence"] or "not known") + (", gated" if r["gated"] else ""),
            ", ".join(r["unverified"]),
        )
        for r in rows
    ]
    table("Published sets", ("name", "kept at", "rows", "licence", "unverified"), cells)
