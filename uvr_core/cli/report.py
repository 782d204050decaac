"""`uvr report`: what a run did, or what another command measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .. import plugins
from ..errors import UVRError
from ..files import printable, to_json, write_whole
from .options import json_option
from .output import REPORT, check_file

SCHEMA = "uvr.report/1"
SUMMARY = "summary.json"  # of a folder of results, beside its rows


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--markdown", type=click.Path(path_type=Path), help="Write a page of evaluations' results to this file.")
@json_option
def report(places: tuple[Path, ...], markdown: Path | None, as_json: bool) -> None:
    """Show the report.json of a run (FILE may be its folder), or what an evaluation found (its folder).

    With --markdown, several folders of `uvr eval` become one page; figures are linked as results/NAME/pareto.png.
    """
    if markdown is not None or (places[0] / SUMMARY).is_file():
        _show_by_plugin(places, markdown, as_json)
        return
    if len(places) > 1:
        raise UVRError(f"{places[1]}: reports of `uvr generate` are shown one at a time")
    path = places[0] / REPORT if places[0].is_dir() else places[0]
    schema, data = _read_result(path)
    if schema != SCHEMA:
        if schema in plugins.registry().names("page"):
            _show_by_plugin(places, markdown, as_json)
            return
        raise UVRError(f"{path}: expected schema {SCHEMA!r}, got {schema!r}; this file is no report of `uvr generate`")
    if as_json:
        click.echo(to_json(data))
        return
    try:
        show_report(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UVRError(f"{path}: the report is damaged: {type(error).__name__}: {error}") from error


def _read_result(path: Path) -> tuple[str | None, Any]:
    """The schema that a result file names, and its contents."""
    if not path.is_file():
        raise UVRError(f"{path}: no such report; `uvr generate --out FOLDER` or `uvr eval` writes one")
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UVRError(f"{path}: not a whole JSON file: {error}") from error
    return (data.get("schema") if isinstance(data, dict) else None), data


def _show_by_plugin(places: Sequence[Path], markdown: Path | None, as_json: bool) -> None:
    """Show results of other commands: by whom the `uvr_pages` hooks name for their schema."""
    paths = [place / SUMMARY if place.is_dir() else place for place in places]
    results = [_read_result(path) for path in paths]
    known = plugins.registry().names("page")
    for path, (schema, _) in zip(paths, results, strict=True):
        if schema not in known or schema != results[0][0]:
            expected = results[0][0] if results[0][0] in known else " or ".join(known) or "that of an installed plugin"
            raise UVRError(f"{path}: expected schema {expected}, got {schema!r}")
    if as_json and markdown is None:
        for _, data in results:
            click.echo(to_json(data))
        return
    if markdown is not None:
        check_file(markdown)
    text = plugins.registry().get("page", str(results[0][0]))(paths, markdown is not None)
    if markdown is None:
        click.echo(text)
        return
    write_whole(markdown, text)
    click.echo(f"{markdown}: {len(paths)} evaluations")


def show_report(data: dict[str, Any]) -> None:
    """Print a report in the form of report.json."""
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    click.echo(f"{data['model']}: {data['pipeline']}, adapter {data['adapter']}, {data['taps']} taps; {versions}")
    for image in data["images"]:
        click.echo(
            f"{image['file'] or 'refused'}  seed {image['seed']}  {image['posture']}  {printable(image['prompt'])}"
        )
        for finding in image["findings"]:
            what = "not located"
            if finding["located"]:
                what = (
                    f"located at step {finding['first_step']}, {finding['patches']} patches, "
                    f"{finding['steps_regulated']} of {image['steps']} steps regulated"
                )
            score = "none" if finding["score"] is None else f"{finding['score']:.3g}"
            click.echo(f"    {finding['concept']}: {what} (score {score}, threshold {finding['threshold']:.3g})")
