"""`uvr pull`: a concept file of the Hub."""

from __future__ import annotations

from pathlib import Path

import attrs
import click

from .. import plugins
from ..concepts.hub import pull as fetch
from ..errors import PluginError, UVRError
from ..files import printable, to_json, write_whole
from . import say
from .options import json_option
from .output import check_file


@click.command()
@click.argument("place", metavar="OWNER/REPO[:FILE][@REVISION]")
@click.option("--sha256", "digest", metavar="HEX", help="Refuse a file that has another digest.")
@click.option("--out", type=click.Path(path_type=Path), help="Copy it there as well: a file, or a folder that exists.")
@json_option
def pull(place: str, digest: str | None, out: Path | None, as_json: bool) -> None:
    """Fetch a concept file of the Hub into its cache, check it, and say at which commit it is.

    Without FILE the only .safetensors file there, without REVISION main. Nothing else of the repository is read. Your
    token (HF_TOKEN, `hf auth login`) is used if you have one.
    """
    be_quiet()
    pulled = fetch(place, sha256=digest)
    bank = pulled.bank
    if out is not None:
        out = out / Path(pulled.place.file).name if out.is_dir() else out
        if out.suffix != ".safetensors":
            raise UVRError(f"{out}: a concept file ends with .safetensors")
        write_whole(check_file(out), pulled.path.read_bytes())
    if not (adapters := adapters_for(bank.fingerprint.model)):
        say(f"note: no adapter here knows {bank.fingerprint.model}; `uvr adapters` lists those that are installed")
    facts = {
        "place": str(pulled.place),
        "commit": pulled.place.revision,
        "sha256": pulled.sha256,
        "file": str(out or pulled.path),
        "name": bank.name,
        "fingerprint": attrs.asdict(bank.fingerprint),
        "adapters": adapters,
        "calibrated": bank.calibration.measured if bank.calibration else None,
        "measured": bank.provenance.get("measured"),
    }
    if as_json:
        click.echo(to_json(facts))
        return
    model, name = bank.fingerprint, printable(bank.name)
    click.echo(
        f"{facts['file']}: {name}, for {printable(model.model)} with {model.blocks} blocks, {model.heads} heads of "
        f"{model.head_dim}{'' if bank.calibration else '; not calibrated'}\n"
        f"sha256 {pulled.sha256}\n"
        f'pinned: uvr_core.attach(pipe, concepts="{printable(str(pulled.place))}")'
    )


def adapters_for(model: str) -> list[str]:
    """Names of the installed adapters that know a model class."""
    known, names = plugins.registry(), []
    for name in sorted(known.names("adapter")):
        try:
            if known.get("adapter", name).model == model:
                names.append(name)
        except PluginError as error:
            say(f"warning: {error}")
    return names


def be_quiet() -> None:
    """Neither progress bars nor notices of the Hub's client: stderr is for what the user must know."""
    from huggingface_hub.utils import disable_progress_bars, logging

    disable_progress_bars()
    logging.set_verbosity_error()
