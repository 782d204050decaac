"""Train and measure the free-form pipelines: python -m uvr_zoo.freeform PART --folder runs/NAME --minutes N.

The same command goes on from where a run stopped; --dry-run says what it would do. On a GPU the same command takes
--device cuda, larger batches and workers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import click

from ..pipelines import DATA
from .captions import PlaceKind
from .pool import Mix
from .wordings import Kind

PATH = click.Path(path_type=Path)
STUDENTS_SMALL = 0.2  # their share of steps on the small canvas, at the start
TEXT = DATA / "freeform" / "text"  # .pipelines would load torch
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


@main.command("chat")
@click.argument("kind", type=click.Choice(["qwen3", "qwen-vl"]))
@folder_option
@minutes_option
@dry_option
@click.option("--words", type=PATH, default=TEXT / "words.safetensors", help="The word table.")
@click.option("--nouns", type=PATH, help="nouns.npz of make_word_vectors.py; without, other things are made-up words.")
@click.option("--export", type=PATH, required=True, help="Folder for the encoder.")
def chat_(
    kind: Any, folder: Path, minutes: float, dry_run: bool, words: Path, nouns: Path | None, export: Path
) -> None:
    """A text encoder that reads chat templates."""
    from ..training import Run
    from .chat_training import train

    if not _plan(dry_run, part=kind, folder=folder, goes_on=(folder / "checkpoint.pt").exists(), export=export):
        train(kind, export, Run(minutes, folder, resume=True), words, nouns)


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
@click.argument("name")
@folder_option
@minutes_option
@dry_option
@click.option("--text", "encoders", type=PATH, default=TEXT, help="Folder of the text encoders.")
@click.option("--vae", "autoencoder", type=PATH, help="Folder of the autoencoder, instead of the shipped one.")
@click.option(
    "--start-from", type=PATH, help="Folder of a transformer, instead of the first edition's, of a student what ships."
)
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--fresh", type=click.IntRange(min=1), default=8, show_default=True, help="New pictures a step.")
@click.option("--pool", type=click.IntRange(min=1), default=2048, show_default=True, help="Pictures kept a canvas.")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Processes that draw them.")
@click.option(
    "--small",
    type=click.FloatRange(0, 1),
    help="Share of steps on the small canvas, at the start.  [default: 0.8; of a student 0.2]",
)
@click.option("--device", default="cpu", show_default=True)
@click.option("--export", type=PATH, help="Folder for the average's weights, of few bits; a student's LoRA, float16.")
def train(
    name: str,
    folder: Path,
    minutes: float,
    dry_run: bool,
    encoders: Path,
    autoencoder: Path | None,
    start_from: Path | None,
    small: float | None,
    device: str,
    export: Path | None,
    **sizes: int,
) -> None:
    """The transformer of a pipeline, from the first edition's weights on; or a student, from its teacher's."""
    import torch

    from .distil import Student
    from .pipelines import family, pipeline, recipe, trained
    from .students import COURSES
    from .train import Plan, Trainer

    course, plain = COURSES.get(name), recipe(name)
    mix = Mix(plain.objects, plain.styles, edits=plain.edits)
    plan = Plan(
        mix, minutes, batch_size=sizes["batch"], fresh=sizes["fresh"], pool=sizes["pool"], workers=sizes["workers"]
    )
    if course is not None:  # its teacher draws well already
        plan, name = attrs.evolve(plan, small=STUDENTS_SMALL, first=128), course.teacher
        start_from = start_from or trained(name)
    if small is not None:
        plan = attrs.evolve(plan, small=small)
    if _plan(
        dry_run,
        plan=plan,
        folder=folder,
        goes_on=(folder / "checkpoint.pt").exists(),
        device=device,
        start_from=start_from,
    ):
        return
    torch.set_float32_matmul_precision("high")  # TF32 where the device has it
    pipe, kind = pipeline(name, encoders, autoencoder, start_from), family(name)
    trainer = Student(course, plan, pipe, kind, folder, device) if course else Trainer(plan, pipe, kind, folder, device)
    trainer.run()
    if export is not None:
        trainer.export(export)


@main.command()
@click.argument("name")
@click.option("--sibling", required=True, help="A trained free-form pipeline of the same architecture.")
@click.option("--share", type=click.FloatRange(0, 1), default=0.4, show_default=True, help="Of what it learned.")
@click.option("--export", "folder", type=PATH, required=True, help="Folder for `train --start-from`.")
def blend(name: str, sibling: str, share: float, folder: Path) -> None:
    """A place to start training from: the first edition's weights and what a sibling learned since."""
    from .blend import export

    export(name, sibling, share, folder)


@main.command()
@folder_option
@minutes_option
@dry_option
@click.option("--export", type=PATH, required=True, help="Folder for the judge.")
def judge(folder: Path, minutes: float, dry_run: bool, export: Path) -> None:
    """The second judge."""
    from ..architectures import load_part
    from ..training import Run
    from .second_judge import train

    if not _plan(dry_run, part="judge", folder=folder, goes_on=(folder / "checkpoint.pt").exists(), export=export):
        vae = load_part("AutoencoderKL", DATA / "shared" / "vae")
        click.echo(json.dumps(train(export, Run(minutes, folder, resume=True), (vae,)).card))


@main.command()
@click.option("--text", "encoders", type=PATH, default=TEXT, help="Folder of the text encoders.")
@click.option("--cut", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Below it, none of these.")
def reading(encoders: Path, cut: float) -> None:
    """How held-out wordings are read; `uvr zoo words` reads a text."""
    from .reading import Reader, measure

    click.echo(json.dumps(measure(Reader(encoders, cut))))


@main.command()
@click.argument("name")
@click.option("--transformer", type=PATH, required=True, help="As `train --export` wrote it; a student's LoRA.")
@click.option("--folder", type=PATH, required=True, help="Of the training run: its log is summed up on the card.")
@click.option("--export", type=PATH, required=True, help="Folder in which the folder NAME is made or gone on with.")
@click.option("--prompts", type=click.IntRange(min=1), help="Of each gate.  [default: 400, and 200 with places]")
def publish(name: str, transformer: Path, folder: Path, export: Path, prompts: int | None) -> None:
    """Write a pipeline as it ships, its gates measured by both judges."""
    from .publish import publish as written

    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    training = {"steps": last["step"], "minutes": round(last["seconds"] / 60), "loss": last["loss"]}
    click.echo(written(name, transformer, export, training, prompts) / "card.json")


@main.command()
@click.argument("name")
@click.option("--text", "encoders", type=PATH, default=TEXT, help="Folder of the text encoders.")
@click.option("--vae", "autoencoder", type=PATH, help="Folder of the autoencoder, instead of the shipped one.")
@click.option("--transformer", type=PATH, required=True)
@click.option("--second", type=PATH, help="Folder of the second judge, who counts then.")
@click.option("--objects", "count", type=click.IntRange(1, 4), default=1, show_default=True)
@click.option("--kind", type=click.Choice(["name", "synonym", "description"]), default="name", show_default=True)
@click.option("--place", type=click.Choice(["none", "vague", "relation", "exact"]), default="none", show_default=True)
@click.option("--prompts", type=click.IntRange(min=1), default=96, show_default=True)
@click.option("--out", type=PATH, required=True, help="Folder for gate.jsonl and the sheet of pictures.")
def gate(
    name: str,
    encoders: Path,
    autoencoder: Path | None,
    transformer: Path,
    second: Path | None,
    out: Path,
    count: int,
    kind: Kind,
    place: PlaceKind,
    prompts: int,
) -> None:
    """Draw held-out prompts and let a judge say how many show every object."""
    from PIL import Image

    from .. import judge as judge_of
    from . import gate as gates
    from . import second_judge
    from .pipelines import pipeline, recipe
    from .render import render

    plain = recipe(name)
    mix, judge = Mix(plain.objects, plain.styles), second_judge.load(second) if second else judge_of()
    prompted = gates.tasks(mix, count, prompts, kind=kind, place=place)
    images = gates.draw(pipeline(name, encoders, autoencoder, transformer), prompted, **plain.sampling)
    ceiling = gates.score(judge, mix, prompted, [Image.fromarray(render(task.scene)[0]) for task in prompted])
    asked = {"pipeline": name, "judge": "second" if second else "first", "objects": count, "kind": kind, "place": place}
    figures = gates.score(judge, mix, prompted, images)
    record = {**asked, **figures, "of_the_rendered_scenes": ceiling["all_objects"]}
    out.mkdir(parents=True, exist_ok=True)
    gates.sheet(images, out / f"{name}-{count}-{kind}-{place}.png")
    with open(out / "gate.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")
    click.echo(json.dumps(record))


if __name__ == "__main__":
    main()
