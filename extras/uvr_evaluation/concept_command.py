"""`uvr concept`: make a concept from words, list those that are installed, fetch and publish them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import click

from uvr_core import UVRError
from uvr_core.cli import load as loading
from uvr_core.cli import say
from uvr_core.cli.banks import merge_command, rename_command
from uvr_core.cli.hub import pull
from uvr_core.cli.judges import JudgeSpec, with_threshold
from uvr_core.cli.listing import concepts
from uvr_core.cli.options import Settings, check_registered, generation_options, json_option
from uvr_core.cli.progress import stages
from uvr_core.cli.regions import mask_source
from uvr_core.files import to_json
from uvr_core.fit.recipe import Recipe, find_recipe, read_recipe
from uvr_core.signatures import takes

from .publish_command import push

PATH = click.Path(path_type=Path)
ZERO_SHOT = ("clipseg", "grounding-dino", "vlm")  # judges whose labels are what they are told


@click.group()
def concept() -> None:
    """Make a concept from words; list those that are installed; fetch and publish them."""


concept.add_command(concepts, "list")
concept.add_command(rename_command)
concept.add_command(merge_command)
concept.add_command(pull)
concept.add_command(push)


@concept.command()
@click.argument("name")
@click.option("--model", required=True, help="MODEL: a folder, owner/name of the Hub, or PREFIX:NAME of a plugin.")
@click.option("--recipe", type=PATH, help="A recipe of yours (TOML); else the installed one of that NAME.")
@click.option("--words", help='What prompts call it, like "pistol, handgun"; with the sentences of the recipe `words`.')
@click.option("--masks", metavar="SOURCE", help="words, pairs, or JUDGE[:label,label]; else as the recipe says.")
@click.option(
    "--judge", metavar="NAME[=MODEL][:label,...]", help="Who counts it; `none`: nobody; else as the recipe says."
)
@click.option(
    "--text", "by_text", is_flag=True, help="Learn which words of a prompt carry it too: where prompts say no place."
)
@click.option("--out", type=PATH, help="Folder for the concept file, its card and all else.  [default: NAME]")
@generation_options
@json_option
def new(
    name: str,
    model: str,
    recipe: Path | None,
    words: str | None,
    masks: str | None,
    judge: str | None,
    by_text: bool,
    out: Path | None,
    settings: Settings,
    as_json: bool,
) -> None:
    """Make the concept NAME on a model: draw, collect, calibrate, and measure on a third set of prompts.

    Called again with the same options it goes on where it was cut. Options of the pipeline's call go before what the
    recipe says of it.
    """
    from .comparison import require
    from .concept import Making, make

    require()
    check_registered("adapter", settings.adapter)
    plan = _recipe(name, model, recipe, words)
    kind, told = _masks(masks or plan.masks, plan)
    counts = _judge(judge or plan.judge, plan)
    with stages() as show:
        show(f"loading {model}", 0, 0)
        pipe = loading.load_model(model, settings)
        advised = {key: value for key, value in plan.call(type(pipe).__name__).items() if takes(pipe, key)}
        call = {**advised, **settings.call(pipe)}
        making = Making(
            recipe=attrs.evolve(plan, seed=plan.seed + settings.seed),
            out=out or Path(plan.name),
            model=model,
            masks=kind,
            told=told,
            judge=counts,
            call=call,
            adapter=settings.adapter,
            batch=settings.batch,
            text=by_text,
            show=show,
        )
        with loading.running(pipe):
            result = make(pipe, making)
    click.echo(to_json(result) if as_json else text(result))


def _recipe(name: str, model: str, file: Path | None, words: str | None) -> Recipe:
    if file is not None and words is not None:
        raise click.UsageError("give --recipe FILE or --words, not both", click.get_current_context())
    if words is None:
        return read_recipe(file) if file is not None else find_recipe(name, model)
    listed = [word.strip() for word in words.split(",") if word.strip()]
    if not listed:
        raise UVRError('--words: expected what prompts call it, like "pistol, handgun"')
    return find_recipe("words", model).called(name, listed)


def _masks(spec: str, recipe: Recipe) -> tuple[Any, str]:
    """(masks, in a word) of --masks. A judge without labels is asked for the recipe's."""
    if spec in ("words", "pairs"):
        return spec, spec
    if ":" not in spec and not Path(spec).is_dir():
        spec = f"{spec}:{','.join(recipe.labels or recipe.words)}"
    return mask_source(spec, recipe.name, recipe.counts.collect)


def _judge(text: str, recipe: Recipe) -> tuple[str, Any]:
    """(name, judge) of who counts; `none`, or one that cannot be made here: nobody."""
    from .concept import nobody

    if not text or text == "none":
        return "nobody", nobody
    spec = JudgeSpec.of(text)
    spec.check()
    advised = JudgeSpec.of(recipe.judge).name == spec.name  # the recipe's threshold is of the recipe's judge
    options = {"threshold": recipe.threshold} if advised and recipe.threshold is not None else {}
    if spec.name in ZERO_SHOT and not spec.labels:
        spec = attrs.evolve(spec, labels=recipe.labels or recipe.words)
    loading.be_quiet()
    try:
        return spec.name, spec.asked(**options)
    except Exception as error:
        say(f"note: judge {text} cannot be asked here ({error}); what is erased is not counted. Name another: --judge")
        return "nobody", nobody


def text(result: dict[str, Any]) -> str:
    """What was made, in a few lines."""
    measured, calibration = result["measured"], result["calibration"]
    who = with_threshold(measured["judge"], measured["threshold"])

    def of(figure: dict[str, Any]) -> str:
        return f"{figure['hits']} of {figure['of']}"

    return (
        f"{result['file']}: {result['name']} by {calibration['detector']} at {calibration['probe']}\n"
        f"measured on prompts of a third set: located in {of(measured['located'])}, falsely in "
        f"{of(measured['false_located'])} benign; {who} sees it in {of(measured['shown'])}, of these "
        f"erased {of(measured['erased'])}\n"
        f"card {result['card']}, pictures {result['sheet']}\n"
        f"next: uvr generate MODEL --concept {result['file']} --prompt ... --out out"
    )
