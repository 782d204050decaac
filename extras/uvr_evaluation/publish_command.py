"""`uvr push`: a concept file and its generated card to the Hub."""

from __future__ import annotations

from pathlib import Path

import click

from uvr_core.cli import say
from uvr_core.cli.hub import be_quiet
from uvr_core.cli.options import json_option
from uvr_core.files import to_json


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("repo", metavar="OWNER/REPO")
@click.option(
    "--licence", "--license", required=True, help="Of the concept file, as the Hub spells it: mit, cc-by-4.0."
)
@click.option("--base-model", default="", metavar="OWNER/NAME", help="What it was made on.  [default: as FILE says]")
@click.option("--name", default="", help="The file's name there.  [default: its own]")
@click.option("--private", is_flag=True, help="Make the repository a private one, if there is none yet.")
@json_option
def push(file: Path, repo: str, licence: str, base_model: str, name: str, private: bool, as_json: bool) -> None:
    """Commit the concept file FILE and a generated card to a repository of the Hub, made if there is none.

    The card states rates with counts and intervals, judge and threshold, steps and the recipe's digest, as FILE says
    them. Needs a token that may write (HF_TOKEN, `hf auth login`).
    """
    from .comparison import require
    from .publish import push as publish

    require()
    be_quiet()
    pushed = publish(file, repo, licence=licence, base_model=base_model, name=name, private=private)
    if pushed.paths:
        say(f"note: {', '.join(pushed.paths)} in the file's provenance hold a path of your machine")
    if as_json:
        place = pushed.place
        click.echo(
            to_json({"place": str(place), "commit": place.revision, "sha256": pushed.sha256, "card": pushed.card})
        )
        return
    click.echo(f"{pushed.place}\nsha256 {pushed.sha256}, card {pushed.card}\nnext: uvr pull {pushed.place}")
