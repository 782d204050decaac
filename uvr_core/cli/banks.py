"""`uvr concept rename` and `uvr concept merge`: concept files made of others, without a model."""

from __future__ import annotations

from pathlib import Path

import click

from ..concepts import load_concepts, merge, rename
from ..files import printable, to_json
from .options import json_option
from .output import check_file

PATH = click.Path(path_type=Path)


@click.command("rename")
@click.argument("file", type=PATH)
@click.argument("name")
@click.option("--out", type=PATH, help="The concept file to write.  [default: FILE itself]")
@json_option
def rename_command(file: Path, name: str, out: Path | None, as_json: bool) -> None:
    """Give the concept in FILE another NAME, in reports and where subjects.toml speaks of it.

    Calibration and what was measured stay as they are; the name before is kept in the file.
    """
    before = load_concepts(file)
    path = rename(before, name.strip()).save(check_file(out or file))
    facts = {"file": str(path), "name": name.strip(), "before": before.name}
    click.echo(to_json(facts) if as_json else f"{path}: {printable(name.strip())}, was {printable(before.name)}")


@click.command("merge")
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option("--name", required=True, help="Of the merged concept.")
@click.option("--out", type=PATH, required=True, help="The concept file to write (.safetensors).")
@json_option
def merge_command(files: tuple[Path, ...], name: str, out: Path, as_json: bool) -> None:
    """Make one concept of the FILES of one concept: collected on one model, from other prompts, styles or seeds.

    Anchors are put together and directions averaged. Nothing that was calibrated or measured holds any more: the new
    file is not calibrated. Files that were calibrated keep one block each, so merge what `uvr collect` wrote.
    """
    bank = merge([load_concepts(file) for file in files], name)
    bank.save(check_file(out))
    facts = {
        "file": str(out),
        "name": bank.name,
        "probes": list(bank.probes),
        "merged_from": bank.provenance["merged_from"],
    }
    text = f"{out}: {printable(bank.name)} of {len(files)} files, {len(bank.probes)} blocks; next: uvr calibrate"
    click.echo(to_json(facts) if as_json else text)
