"""`uvr zoo`. Torch loads inside the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import attrs
import click

from uvr_core.cli import output, say
from uvr_core.cli.progress import progress, stages
from uvr_core.errors import UVRError, did_you_mean
from uvr_core.files import to_json

from . import components
from .recipes import RECIPES, Recipe, recipe_of

PATH = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output on stdout.")


def _data() -> Path:
    return Path(str(files("uvr_zoo"))) / "data"


def _concepts(names: tuple[str, ...]) -> tuple[str, ...]:
    """The zoo's concepts of these names; those that it ships banks for if there are none."""
    from .vocabulary import CONCEPTS

    for concept in names:
        if concept not in CONCEPTS:
            raise UVRError(f"unknown zoo concept {concept!r}{did_you_mean(concept, CONCEPTS)}")
    return names or ("weapon", "skull")


@click.group(invoke_without_command=True)
@click.pass_context
def zoo(ctx: click.Context) -> None:
    """The small pipelines that this project trained, in diffusers' real classes."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@zoo.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the zoo's pipelines: what they draw, how large they are, what their card says. And the parts they share."""
    rows = []
    for name, recipe in RECIPES.items():
        card = _data() / name / "card.json"
        rows.append(
            {
                "name": name,
                "objects": list(recipe.objects),
                "styles": list(recipe.styles),
                "steps": recipe.steps,
                "transformer": recipe.transformer,
                "trained": (_data() / name / "transformer").is_dir(),
                "card": json.loads(card.read_text()) if card.is_file() else None,
            }
        )
    parts: list[dict[str, Any]] = [
        {
            "name": part.name,
            "about": part.about,
            "files": list(part.files),
            "made": part.exists(_data()),
            "needs": list(part.needs),
            "pipelines": list(part.pipelines),
            "minutes": part.minutes,
        }
        for part in components.PARTS.values()
    ]
    cards = sorted((_data() / "freeform").glob("*/card.json"))
    free = [{"name": f"free-{path.parent.name}", "card": json.loads(path.read_text())} for path in cards]
    if as_json:
        click.echo(to_json({"pipelines": rows, "free": free, "parts": parts}))
        return
    for row in rows:
        state = "ships trained" if row["trained"] else f"not trained yet: uvr zoo train {row['name']}"
        click.echo(
            f"{row['name']}: {len(row['objects'])} objects, {len(row['styles'])} styles, {row['steps']} steps; {state}"
        )
    for row in free:
        click.echo(f"{row['name']}: free English, 96 x 96 pixels; ships trained")
    for row in parts:
        state = "ships trained" if row["made"] else f"not made yet: uvr zoo ground {row['name']}"
        users = f", for {', '.join(row['pipelines'])}" if row["pipelines"] else ""
        click.echo(f"part {row['name']}: {row['about']}{users}; {state}")


@zoo.command()
@click.argument("name")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Wall time of this call.",
)
@click.option("--resume", is_flag=True, help="Go on from the folder's checkpoint, if there is one.")
@click.option("--out", type=PATH, help="Folder of the run: checkpoint, log.  [default: runs/NAME]")
@click.option("--distil", is_flag=True, help="Distil guidance into the model instead, after plain training: --resume.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, mps.")
@click.option("--export", type=PATH, help="When done, save the averaged weights here in diffusers format.")
def train(
    name: str, minutes: float, resume: bool, out: Path | None, distil: bool, device: str, export: Path | None
) -> None:
    """Train the pipeline NAME. Ctrl-C stops after the step, saves, and exits with 130; --resume goes on.

    Logs loss and prompt fidelity, one JSON line each.
    """
    recipe = recipe_of(name)
    if distil and not recipe.transformer.get("guidance_embeds"):
        raise UVRError(f"--distil: {name} has no guidance embedding to distil into; it draws with two passes")
    out = out or Path("runs") / name
    for folder in filter(None, (out, export)):
        output.check_folder(folder)
    if recipe.start_from is not None and not (_data() / recipe.start_from / "transformer").is_dir():
        raise UVRError(
            f"{name} starts from {recipe.start_from}, which is not in {_data()}: first uvr zoo train and publish it"
        )
    from uvr_core.cli.load import be_quiet, find_device

    where = str(find_device(device))
    be_quiet()
    from .pipelines import load_transformer, parts
    from .train import Trainer

    start = None if recipe.start_from is None else load_transformer(recipe.start_from, _data() / recipe.start_from)
    try:
        shared = parts(name)
    except (OSError, ValueError) as error:
        if absent := components.missing_for(name, _data()):
            raise UVRError(f"{name} is built on parts not in {_data()}: uvr zoo ground {absent[0]}") from error
        raise
    trainer = Trainer(recipe, shared, out, device=where, resume=resume, start_from=start)
    with stages() as show:
        trainer.run(minutes, distil=distil, fidelity=_fidelity(recipe, trainer.parts), progress=show)
    if trainer.stopped:
        raise KeyboardInterrupt
    if export is not None:
        save(trainer.ema, export)
        click.echo(f"exported to {export}")


def save(transformer: Any, folder: Path) -> None:
    """Write `transformer` in a folder of that name, whole or not at all: what `uvr_zoo.load(name, folder)` reads."""
    with components.staged(folder, ("transformer",)) as stage:
        transformer.save_pretrained(stage / "transformer")


def _fidelity(recipe: Recipe, shared: Any, count: int = 64) -> Callable[[Any], dict[str, Any]] | None:
    """A function of a transformer: how often the judge finds what held-out prompts ask for."""
    if not (_data() / "judge" / "judge.json").is_file():
        say(f"note: prompt fidelity is not measured: no judge in {_data() / 'judge'}")
        return None
    from .experiment import edit_fidelity, fidelity
    from .pipelines import assemble

    measured = edit_fidelity if recipe.edits else fidelity

    def measure(transformer: Any) -> dict[str, Any]:
        return measured(assemble(recipe, transformer, shared), recipe.name, count)

    return measure


@zoo.command()
@click.argument("name")
@click.option("--concept", "names", multiple=True, help="Only these.  [default: weapon, skull]")
@click.option("--out", type=PATH, required=True, help="Folder for NAME-CONCEPT.safetensors.")
@click.option("--raw", is_flag=True, help="Also keep the uncalibrated banks, with every probe, as NAME-CONCEPT.raw...")
def concepts(name: str, names: tuple[str, ...], out: Path, raw: bool) -> None:
    """Make the concept banks of pipeline NAME as the shipped ones were made: collect, then calibrate."""
    from . import concept_files
    from .pipelines import load

    recipe, names = recipe_of(name), _concepts(names)
    output.check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    pipe = load(recipe.name)
    usual = concept_files.UNSAFE_PROMPTS + concept_files.BENIGN_PROMPTS + concept_files.CALIBRATE_UNSAFE
    with stages() as show:
        for concept in names:
            done, total = 0, usual + concept_files.options_of(name, concept)["benign"]

            def tick(images: int, concept: str = concept, total: int = total) -> None:
                nonlocal done
                done += images
                show(f"{name}, {concept}", done, total)

            bank = concept_files.collect(pipe, name, concept, progress=tick)
            if raw:
                bank.save(out / f"{name}-{concept}.raw.safetensors")
            bank, path = (
                concept_files.calibrate(pipe, name, bank, progress=tick),
                concept_files.path(out, name, concept),
            )
            concept_files.half(bank).save(path)
            click.echo(f"{path}: {bank.calibration.measured if bank.calibration else None}")


@zoo.command()
@click.argument("name")
@click.option("--concept", "names", multiple=True, help="Only these.  [default: weapon, skull]")
@click.option("--count", type=click.IntRange(1), default=32, show_default=True, help="Tasks of each unsafe kind.")
@click.option("--benign", type=click.IntRange(0), default=64, show_default=True, help="Tasks without anything unsafe.")
@click.option("--first", type=click.IntRange(min=0), default=800_000, show_default=True, help="First scene's seed.")
@click.option("--out", type=PATH, required=True, help="Folder for prompts.jsonl, subjects.toml and source pictures.")
def prompts(name: str, names: tuple[str, ...], count: int, benign: int, first: int, out: Path) -> None:
    """Write held-out tasks of pipeline NAME as a prompt set for `uvr eval`, in drawing styles the anchors never saw."""
    from .prompt_sets import write

    recipe, names = recipe_of(name), _concepts(names)
    output.check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    tasks = write(recipe.name, out, names, count, benign, first)
    click.echo(f"{out / 'prompts.jsonl'}: {tasks} tasks; next: uvr eval zoo:{name} --prompts {out / 'prompts.jsonl'}")


@zoo.command()
@click.argument("texts", nargs=-1)
@json_option
def words(texts: tuple[str, ...], as_json: bool) -> None:
    """How the second edition's pipelines (free-NAME) read TEXTS, word by word; without any, what they can draw."""
    if not texts:
        from .freeform.wordings import vocabulary

        held = vocabulary()
        lines = [f"{name}: {', '.join(ways)}" for name, ways in held.items()]
        click.echo(to_json(held) if as_json else "\n".join(lines))
        return
    from .freeform.reading import Reader

    readings = Reader(_data() / "freeform" / "text")(list(texts))
    if as_json:
        click.echo(to_json([{"text": text, **attrs.asdict(read)} for text, read in zip(texts, readings, strict=True)]))
        return
    for text, read in zip(texts, readings, strict=True):
        said = [*(read.objects or ("no object",)), f"background {read.background}", f"style {read.style}"]
        click.echo(f"{text}: {', '.join(word for word in said if not word.endswith(' None'))}")
        click.echo("  " + " ".join(f"{piece}={kind}" if kind else piece for piece, kind in read.pieces))


@zoo.command()
@click.argument("name")
@click.argument("folder", type=PATH)
def export(name: str, folder: Path) -> None:
    """Write the pipeline NAME in diffusers' format, float32: what `from_pretrained(FOLDER)` reads."""
    output.check_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UVRError(f"{folder} is not empty")
    from uvr_core.cli.load import be_quiet

    be_quiet()
    from .loading import FREE, load

    load(name if name.startswith(FREE) else recipe_of(name).name).save_pretrained(folder)
    click.echo(f"{name}: {folder}")


@zoo.command()
@click.argument("part")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="Wall time in all, resumed calls together.  [default: what the shipped part took]",
)
@click.option("--resume", is_flag=True, help="Go on from the folder's checkpoint, if there is one.")
@click.option("--out", type=PATH, help="Folder of the run: checkpoint, log.  [default: runs/PART]")
@click.option(
    "--export", type=PATH, help="Folder for the part, laid out as the zoo's data, float16.  [default: OUT/export]"
)
def ground(part: str, minutes: float | None, resume: bool, out: Path | None, export: Path | None) -> None:
    """Train from scratch a PART that pipelines share, or the judge; `uvr zoo list` names them.

    What a part starts from is read from the zoo's own data. Ctrl-C stops after the step, saves, and exits with 130;
    --resume goes on. The judge alone has no checkpoint.
    """
    if part not in components.PARTS:
        raise UVRError(f"unknown part {part!r}{did_you_mean(part, components.PARTS)}")
    component, out = components.PARTS[part], out or Path("runs") / part
    export = export or out / "export"
    for folder in (out, export):
        output.check_folder(folder)
    from uvr_core.cli.load import be_quiet

    be_quiet()
    from .training import Run

    components.make(component, Run(minutes or component.minutes, out, resume), _data(), export)
    click.echo(f"{part}: {', '.join(str(export / path) for path in component.files)}")


@zoo.command()
@click.argument("name")
@click.option("--run", type=PATH, help="Folder of the training run.  [default: runs/NAME]")
@click.option("--export", type=PATH, required=True, help="Folder in which the folder NAME is made or replaced.")
@click.option("--count", type=click.IntRange(8), default=400, show_default=True, help="Held-out prompts to measure on.")
def publish(name: str, run: Path | None, export: Path, count: int) -> None:
    """Write the pipeline NAME as it ships: float16 weights of a run, scheduler, card, sample sheet."""
    recipe = recipe_of(name)
    output.check_folder(export)
    if absent := [*components.missing_for(name, _data()), *components.missing(["judge"], _data())]:
        raise UVRError(f"{absent[0]} is not in {_data()}: first uvr zoo ground {absent[0]}")
    from uvr_core.cli.load import be_quiet

    be_quiet()
    from .publish import publish as written

    with progress(f"measuring {name}", count) as advance:
        card = written(recipe, run or Path("runs") / name, export, count, advance)
    click.echo(f"{export / name}: {to_json(card['fidelity'])}")
