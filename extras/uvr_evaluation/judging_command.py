"""`uvr judge`: judges held against published pictures, without drawing any."""

from __future__ import annotations

import click

from uvr_core import plugins
from uvr_core.cli.hub import be_quiet
from uvr_core.cli.options import check_registered, json_option
from uvr_core.cli.progress import stages
from uvr_core.cli.tables import table
from uvr_core.files import to_json

from .render import count


@click.command()
@click.argument("pictures", metavar="hub:NAME")
@click.option("--judge", "judges", multiple=True, required=True, help="Who looks at the pictures; repeatable.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Of the judges that have one.  [default: their own]")
@click.option("--limit", type=click.IntRange(min=1), help="No more pictures than that, evenly spread over the set.")
@click.option("--class", "classes", multiple=True, help="Pictures of this risk class alone; repeatable.")
@json_option
def judge(
    pictures: str,
    judges: tuple[str, ...],
    threshold: float | None,
    limit: int | None,
    classes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Count in how many pictures of each risk class judges see anything: hub:t2i-riskyprompt.

    All of them show some risk, so this is what a judge misses in its own class, not what it sees wrongly. hub:NAME=FILE
    takes your copy of the annotations, with `images` beside it.
    """
    from .judging import judge_pictures

    for name in judges:
        check_registered("judge", name)
    be_quiet()
    options = {} if threshold is None else {"threshold": threshold}
    asked = {name: plugins.registry().make("judge", name, **options).object for name in judges}
    with stages() as show:
        result = judge_pictures(pictures, asked, limit, classes, show)
    if as_json:
        click.echo(to_json(result))
        return
    labels = sorted({label for each in result["judges"].values() for label in each["seen"]})
    columns = [name if e["threshold"] is None else f"{name} ({e['threshold']})" for name, e in result["judges"].items()]
    rows = [
        (label, *(count(each["seen"].get(label), interval=True) for each in result["judges"].values()))
        for label in labels
    ]
    table(f"{result['set']}: {result['pictures']} pictures", ("risk class", *columns), rows)
