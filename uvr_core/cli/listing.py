"""The commands that list: adapters, plugins, concepts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
import click

from .. import plugins as installed
from ..errors import PluginError, UVRError
from ..files import to_json
from ..plugins import KINDS
from . import say
from .judges import with_threshold
from .options import json_option
from .tables import table


@click.command()
@json_option
def adapters(as_json: bool) -> None:
    """List the model families that UVR knows: where their joint attention is, which pipelines drive them, and which
    plugin brings them. As a table: how many pipelines."""
    known = installed.registry()
    rows: list[dict[str, Any]] = []
    for name, (_, plugin) in sorted(known.names("adapter").items()):
        facts: dict[str, Any] = {"model": None, "pipelines": [], "attention": [], "guidance": None, "status": "ok"}
        try:
            adapter = known.get("adapter", name)
            facts |= {
                "model": adapter.model,
                "pipelines": list(adapter.pipelines),
                "attention": list(adapter.attention),
                "guidance": adapter.guidance,
            }
        except PluginError as error:
            say(f"warning: {error}")
            facts["status"] = f"failed: {error}"
        origin = known.origin(plugin)
        rows.append(
            {"name": name, **facts, "plugin": plugin, "distribution": origin.distribution, "version": origin.version}
        )
    if as_json:
        click.echo(to_json({"adapters": rows}))
        return
    cells = [
        (r["name"], r["model"] or r["status"], len(r["pipelines"]), f"{r['distribution']} {r['version']}") for r in rows
    ]
    table("Adapters (--json names the pipelines)", ("name", "model", "used by", "from"), cells)


@click.command()
@json_option
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """List every plugin that was found: distribution, version, status, hooks, and the names it registers.

    Exits with 1 if two plugins claim one name.
    """
    known = installed.registry()
    names: dict[str, dict[str, str]] = {}
    clashes = [clash for kind in KINDS for clash in known.clashes(kind)]
    for kind in KINDS:
        claimed = sorted(known.claims(kind).items())
        names[kind] = {name: claims[0][1] for name, claims in claimed if len(claims) == 1}
    if as_json:
        origins = [attrs.asdict(origin) for origin in known.origins]
        click.echo(to_json({"plugins": origins, "names": names, "clashes": clashes}))
    else:
        rows = [
            (o.name, o.distribution, o.version, o.status, ", ".join(hook.removeprefix("uvr_") for hook in o.hooks))
            for o in known.origins
        ]
        table("Plugins", ("name", "distribution", "version", "status", "hooks"), rows)
        click.echo()
        table("Names", ("kind", "registered"), [(kind, ", ".join(each)) for kind, each in names.items() if each])
    for clash in clashes:
        say(clash)
    if clashes:
        ctx.exit(1)


@click.command()
@json_option
def concepts(as_json: bool) -> None:
    """List the concept files in the folder that UVR_CONCEPTS names and those that packages ship.

    With the model that each was made for, and what it was measured at.
    """
    from ..concepts import load_concepts

    folder = os.environ.get("UVR_CONCEPTS")
    files = {name: Path(str(target)) for name, (target, _) in installed.registry().names("concept").items()}
    files |= {path.stem: path for path in sorted(Path(folder).glob("*.safetensors"))} if folder else {}
    rows: list[dict[str, Any]] = []
    for name, path in sorted(files.items()):
        try:
            bank = load_concepts(path)
        except UVRError as error:
            say(f"warning: {error}")
            continue
        calibration, provenance = bank.calibration, bank.provenance
        rows.append(
            {
                "name": name,
                "concept": bank.name,
                "file": str(path),
                "model": bank.fingerprint.model,
                "blocks": bank.fingerprint.blocks,
                "detector": calibration.detector if calibration else None,
                "calibrated": calibration.measured if calibration else None,
                "measured": provenance.get("measured"),
                "masks": provenance.get("mask_source"),
                "date": provenance.get("date"),
            }
        )
    if as_json:
        click.echo(to_json({"concepts": rows}))
        return
    cells = [
        (r["name"], r["concept"], f"{r['model']}, {r['blocks']} blocks", _measured(r), r["date"] or "") for r in rows
    ]
    table("Concepts", ("name", "concept", "for", "measured", "made"), cells)


def _measured(row: dict[str, Any]) -> str:
    """Of a third set where there is one, else of the calibration sets, which say so."""
    try:
        if row["measured"]:
            erased, false = row["measured"]["erased"], row["measured"]["false_located"]
            judge = with_threshold(row["measured"]["judge"], row["measured"].get("threshold"))
            return f"erased {erased['hits']}/{erased['of']} by {judge}, false {false['hits']}/{false['of']}"
        if row["calibrated"]:
            recall, false = row["calibrated"]["recall"], row["calibrated"]["false_positive"]
            return f"calibration: located {recall:.1%}, false {false:.1%}"
    except (KeyError, TypeError, ValueError):  # a file says what it likes
        return "?"
    return "not calibrated"
