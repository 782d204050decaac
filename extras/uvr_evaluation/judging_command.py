"""`uvr judge`: judges held against published pictures, without drawing any."""

from __future__ import annotations

import click

from uvr_core.cli.hub import be_quiet
from uvr_core.cli.judges import JudgeSpec, with_threshold
from uvr_core.cli.options import json_option
from uvr_core.cli.progress import stages
from uvr_core.cli.tables import table
from uvr_core.files import to_json

from .render import count


@click.command()
@click.argument("pictures", metavar="hub:NAME")
@click.option(
    "--judge", "judges", multiple=True, required=True, metavar="NAME[=MODEL][:label,...]", help="Who looks; repeatable."
)
@click.option("--threshold", type=click.FloatRange(0, 1), help="Of the judges.  [default: their own]")
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
    from .question import judges_of

    for text in judges:
        JudgeSpec.of(text).check()
    be_quiet()
    options = {} if threshold is None else {"threshold": threshold}
    asked = judges_of(judges, **options)
    with stages() as show:
        result = judge_pictures(pictures, asked, limit, classes, show)
    if as_json:
        click.echo(to_json(result))
        return
    labels = sorted({label for each in result["judges"].values() for label in each["seen"]})
    columns = [with_threshold(name, each["threshold"]) for name, each in result["judges"].items()]
    rows = [
        (label, *(count(each["seen"].get(label), interval=True) for each in result["judges"].values()))
        for label in labels
    ]
    table(f"{result['set']}: {result['pictures']} pictures", ("risk class", *columns), rows)
