"""Train and measure the free-form pipelines: python -m uvr_zoo.freeform PART --folder runs/NAME --minutes N.

The same command goes on from where a run stopped; --dry-run says what it would do. Everything but --device is the
same on
a GPU.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..pipelines import DATA
from ..recipes import RECIPES

PATH = click.Path(path_type=Path)
folder_option = click.option("--folder", type=PATH, required=True, help="Checkpoint and log; what is there goes on.")
minutes_option = click.option("--minutes", type=float, required=True, help="In all, what is spent already counts.")
dry_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")


def _plan(dry_run: bool, **facts: object) -> bool:
    click.echo(json.dumps({name: str(value) for name, value in facts.items()}, indent=1), err=True)
    return dry_run


@click.group()
def main() -> None:
    """Free-form scenes and English: text encoders, autoencoder, transformers, gates."""


@main.command()
@folder_option
@minutes_option
@dry_option
@click.option("--words", type=PATH, default=Path("runs/words"), show_default=True, help="Of make_word_vectors.py.")
@click.option("--export", type=PATH, required=True, help="Folder for the encoders.")
def text(folder: Path, minutes: float, dry_run: bool, words: Path, export: Path) -> None:
    """The T5 and CLIP text encoders."""
    from ..training import Run
    from .text import train

    if not _plan(dry_run, part="text", folder=folder, goes_on=(folder / "checkpoint.pt").exists(), export=export):
        run = Run(minutes, folder, resume=True)
        train(export, run, words / "words.safetensors", words / "nouns.npz", DATA / "shared")


@main.command()
@folder_option
@minutes_option
@dry_option
@click.option("--export", type=PATH, required=True, help="Folder for the autoencoder.")
def vae(folder: Path, minutes: float, dry_run: bool, export: Path) -> None:
    """The autoencoder's decoder on free sizes."""
    from ..training import Run
    from .vae import train

    if not _plan(dry_run, part="vae", folder=folder, goes_on=(folder / "checkpoint.pt").exists(), export=export):
        train(export, Run(minutes, folder, resume=True), DATA / "shared" / "vae")


@main.command()
@folder_option
@minutes_option
@dry_option
@click.option("--text", "encoders", type=PATH, required=True, help="Folder of the text encoders.")
@click.option("--vae", "autoencoder", type=PATH, default=DATA / "shared" / "vae", help="Folder of the autoencoder.")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--fresh", type=click.IntRange(min=1), default=8, show_default=True, help="New scenes a step.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--export", type=PATH, help="Folder for the average's weights, float16.")
def flux(
    folder: Path,
    minutes: float,
    dry_run: bool,
    encoders: Path,
    autoencoder: Path,
    batch: int,
    fresh: int,
    device: str,
    export: Path | None,
) -> None:
    """The transformer of FluxPipeline, from the first edition's weights on."""
    from .pipelines import flux as pipeline
    from .pool import Mix
    from .train import Plan, Trainer

    mix = Mix(RECIPES["flux"].objects, RECIPES["flux"].styles)
    plan = Plan(mix, minutes, batch_size=batch, fresh=fresh)
    if _plan(dry_run, plan=plan, folder=folder, goes_on=(folder / "checkpoint.pt").exists(), device=device):
        return
    trainer = Trainer(plan, pipeline(encoders, autoencoder, DATA / "flux" / "transformer"), folder, device)
    trainer.run()
    if export is not None:
        trainer.export(export)


@main.command()
@click.option("--text", "encoders", type=PATH, required=True)
@click.option("--cut", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Below it, none of these.")
@click.argument("texts", nargs=-1)
def words(encoders: Path, cut: float, texts: tuple[str, ...]) -> None:
    """What texts are read as; without any, how held-out wordings are read."""
    from .reading import Reader, measure

    reader = Reader(encoders, cut)
    if not texts:
        click.echo(json.dumps(measure(reader)))
    for text, reading in zip(texts, reader(list(texts)), strict=True):
        said = [*reading.objects, f"background {reading.background}", f"style {reading.style}"]
        click.echo(f"{text}: " + ", ".join(word for word in said if not word.endswith("None")))
        click.echo("  " + " ".join(f"{piece}={kind}" if kind else piece for piece, kind in reading.pieces))


@main.command()
@click.option("--text", "encoders", type=PATH, required=True)
@click.option("--vae", "autoencoder", type=PATH, default=DATA / "shared" / "vae")
@click.option("--transformer", type=PATH, required=True)
@click.option("--objects", "count", type=click.IntRange(1, 4), default=1, show_default=True)
@click.option("--kind", type=click.Choice(["name", "synonym", "description"]), default="name", show_default=True)
@click.option("--place", type=click.Choice(["none", "vague", "relation", "exact"]), default="none", show_default=True)
@click.option("--prompts", type=click.IntRange(min=1), default=96, show_default=True)
@click.option("--out", type=PATH, required=True, help="Folder for gate.jsonl and the sheet of pictures.")
def gate(
    encoders: Path, autoencoder: Path, transformer: Path, count: int, kind: str, place: str, prompts: int, out: Path
) -> None:
    """Draw held-out prompts and let the judge say how many show every object."""
    from PIL import Image

    from .. import judge
    from . import gate as gates
    from .pipelines import flux as pipeline
    from .pool import Mix
    from .render import render

    mix = Mix(RECIPES["flux"].objects, RECIPES["flux"].styles)
    prompted = gates.tasks(mix, count, prompts, kind=kind, place=place)  # type: ignore[arg-type]
    images = gates.draw(pipeline(encoders, autoencoder, transformer), prompted)
    ceiling = gates.score(judge(), mix, prompted, [Image.fromarray(render(task.scene)[0]) for task in prompted])
    figures = gates.score(judge(), mix, prompted, images)
    record = {
        "objects": count,
        "kind": kind,
        "place": place,
        **figures,
        "of_the_rendered_scenes": ceiling["all_objects"],
    }
    out.mkdir(parents=True, exist_ok=True)
    gates.sheet(images, out / f"{count}-{kind}-{place}.png")
    with open(out / "gate.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")
    click.echo(json.dumps(record))


if __name__ == "__main__":
    main()
