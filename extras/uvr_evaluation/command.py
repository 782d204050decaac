"""`uvr eval`: the same prompts under policies, controls and baselines, judged, resumable, with intervals."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from uvr_core.cli import load as loading
from uvr_core.cli import say
from uvr_core.cli.judges import JudgeSpec
from uvr_core.cli.options import Settings, check_registered, generation_options, json_option
from uvr_core.cli.progress import stages
from uvr_core.files import to_json

from .suite_command import NAMES, suite_options, told_alike
from .suite_command import run as run_suite

PATH = click.Path(path_type=Path)


def _variations(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, list[str]]:
    """NAME=VALUE[,VALUE...], repeatable -> {name: values}."""
    parameters: dict[str, list[str]] = {}
    for text in values:
        name, sign, listed = text.partition("=")
        several = [value for value in listed.split(",") if value]
        if not sign or not name or not several:
            raise click.BadParameter(f"expected NAME=VALUE[,VALUE...], got {text!r}", ctx, param)
        parameters.setdefault(name, []).extend(several)
    return parameters


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """LABEL=FILE, repeatable."""
    pairs = [(label, file) for label, _, file in (text.partition("=") for text in values)]
    if bad := next((text for text, (label, file) in zip(values, pairs, strict=True) if not label or not file), None):
        raise click.BadParameter(f"expected LABEL=FILE, got {bad!r}", ctx, param)
    return dict(pairs)


@click.command("eval")
@click.argument("model")
@click.option(
    "--prompts",
    type=PATH,
    help="The prompt set (.csv, .jsonl, .parquet): prompt or instruction, concept, seed, image, expect, absent, group; "
    "or hub:NAME of a published one (`uvr prompt-sets`), hub:owner/name[:file][@revision], hub:NAME=FILE of your copy.",
)
@click.option("--subjects", type=PATH, help="What judges and prompts call each concept.  [default: subjects.toml]")
@click.option("--concept", "concepts", multiple=True, metavar="FILE_OR_NAME", help="A concept to regulate; repeatable.")
@click.option("--policy", "policies", multiple=True, help="An arm; repeatable.  [default: selective]")
@click.option("--detector", "detectors", multiple=True, help="How patches are located; repeatable.")
@click.option("--baseline", "baselines", multiple=True, help="An arm without UVR; repeatable.")
@click.option(
    "--control",
    "controls",
    multiple=True,
    help="oracle (the true mask), random (as many patches, anywhere), observe (locate, do not restrict); repeatable.",
)
@click.option(
    "--without", multiple=True, help="noise, attenuation, boost, ring: each policy with that off; repeatable."
)
@click.option(
    "--vary",
    multiple=True,
    callback=_variations,
    metavar="NAME=VALUE,...",
    help="One arm of the first policy per value, of its parameters or of threshold, window=1:0.8, probe, anchors.",
)
@click.option(
    "--anchors-from",
    multiple=True,
    callback=_pairs,
    metavar="LABEL=FILE",
    help="One arm of the first policy with this concept file, made in another style, seed or checkpoint; repeatable.",
)
@click.option(
    "--judge",
    "judges",
    multiple=True,
    metavar="NAME[=MODEL][:label,...]",
    help="Who says what a picture shows; MODEL: its weights, where the user brings them; repeatable.",
)
@click.option("--limit", type=click.IntRange(min=1), help="No more tasks than that, the first of the set.")
@click.option("--lpips", is_flag=True, help="Measure LPIPS too; needs torchvision and its weights.")
@click.option("--out", type=PATH, required=True, help="Result folder. A run that was cut goes on in its own folder.")
@click.option("--overwrite", is_flag=True, help="Begin anew in a folder that holds another evaluation.")
@suite_options
@generation_options
@json_option
@click.pass_context
def evaluate(
    ctx: click.Context, model: str, settings: Settings, vary: Mapping[str, Sequence[str]], as_json: bool, **asked: Any
) -> None:
    """Make the pictures of a prompt set under several arms, judge them, and say what each arm costs and gains.

    Writes one row per picture as it goes; run it again to go on after a crash. Ends with summary.json, report.html and
    a figure in OUT. Several processes share the batches:

        accelerate launch --multi_gpu --num_processes 4 --no_python uvr eval MODEL ...
    """
    kinds = {"policies": "policy", "detectors": "detector", "baselines": "baseline"}
    for option, kind in kinds.items():
        for name in asked[option]:
            check_registered(kind, name)
    for text in asked["judges"]:
        JudgeSpec.of(text).check()
    check_registered("adapter", settings.adapter)
    from . import comparison, pages
    from .arms import parse_value

    share, device = _share(settings.device)
    settings = attrs.evolve(settings, device=device)
    asked["vary"] = {name: [parse_value(value) for value in values] for name, values in vary.items()}
    told = {name: asked.pop(name) for name in NAMES}
    if told["suite"]:
        if asked.pop("prompts") or asked.pop("subjects"):
            raise click.UsageError("--suite has its own prompts and subjects", ctx)
        run_suite(model, settings, told, asked, share, as_json)
        return
    for option, wanted in (("prompts", "--prompts"), ("judges", "--judge")):
        if not asked[option]:
            raise click.UsageError(f"Missing option '{wanted}'", ctx)
    with stages() as show:
        summary = comparison.evaluate(
            lambda: loading.load_model(model, settings),
            size=settings.size,
            **told_alike(model, settings, share, show),
            **asked,
        )
    if summary["unfinished"]:
        say(f"note: this process is done; {summary['unfinished']} tasks are not yet (other processes, or run it again)")
        return
    click.echo(to_json(summary) if as_json else pages.text(summary, pages.load(asked["out"])[0]))


def _share(device: str) -> tuple[tuple[int, int], str]:
    """(Number of this process, of how many), and its device, under `accelerate launch` or torchrun."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes <= 1:
        return (0, 1), device
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    import torch

    cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    return (rank, processes), f"cuda:{local % torch.cuda.device_count()}" if cuda else device
