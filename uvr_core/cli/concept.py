"""`uvr collect` and `uvr calibrate`: make a concept bank and choose how to detect it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import click

import uvr_core

from ..errors import UVRError
from ..files import to_json
from ..fit.masks import Terms, finder_of
from . import say
from .load import load_model, running
from .options import Settings, check_registered, generation_options, json_option
from .output import check_file
from .progress import counter, stages
from .prompts import texts_of
from .regions import mask_source

PATH = click.Path(path_type=Path)
MASKS = (
    "JUDGE[=MODEL][:label,label] that points at the concept in the generated images, or a folder of PNG masks, one per "
    "prompt."
)


@contextmanager
def _drawing(model: str, settings: Settings, what: str, count: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The pipeline, and what `collect` and `calibrate` alike are told about drawing `count` images with it."""
    with stages() as show:
        show(f"loading {model}", 0, 0)
        pipe = load_model(model, settings)
        options = {"adapter": settings.adapter, "seed": settings.seed, "batch_size": settings.batch}
        with running(pipe):
            yield pipe, {**options, "generate": settings.call(pipe), "progress": counter(show, what, count)}


@click.command()
@click.argument("model")
@click.argument("name")
@click.option("--prompts", type=PATH, required=True, help="Prompts that show the concept (.txt, .csv, .jsonl).")
@click.option("--benign", type=PATH, help="Prompts without it: the other side of the contrast.")
@click.option("--masks", required=True, metavar="SOURCE", help=f"words, pairs, or {MASKS}")
@click.option(
    "--words", default="", help='What the prompts call it, like "pistol, handgun", for --masks words or pairs.'
)
@click.option("--without", type=PATH, help="For --masks pairs: the prompts without the concept, one for each.")
@click.option("--out", type=PATH, required=True, help="The concept file to write (.safetensors).")
@generation_options
@json_option
def collect(
    model: str,
    name: str,
    prompts: Path,
    benign: Path | None,
    masks: str,
    words: str,
    without: Path | None,
    out: Path,
    settings: Settings,
    as_json: bool,
) -> None:
    """Draw the concept NAME with MODEL, unregulated, and keep what it looks like inside.

    For a folder of masks, first draw the images with `uvr generate` and the same prompts, seed and options; then paint
    each one's mask, white where the concept is.
    """
    if not name.strip():
        raise UVRError("NAME: the concept needs a name")
    shown, others = texts_of(prompts, say), texts_of(benign, say) if benign else []
    check_registered("adapter", settings.adapter)
    check_file(out)
    source, word = mask_source(masks, name, len(shown))
    terms = Terms(
        name,
        tuple(word.strip() for word in words.split(",") if word.strip()),
        None if without is None else texts_of(without, say),
    )
    images = finder_of(source, terms).passes * len(shown) + len(others)
    with _drawing(model, settings, f"collecting {name}", images) as (pipe, options):
        options |= {"words": terms.words, "without": terms.without, "mask_source": word}
        bank = uvr_core.collect(pipe, name, prompts=shown, benign_prompts=others, masks=source, **options)
    bank.save(out)
    result = {"file": str(out), "name": name, "probes": list(bank.probes), "provenance": bank.provenance}
    used = bank.provenance["images_with_concept"]
    _tell(result, as_json, f"{out}: {name}, seen in {used} of {len(shown)} images; next: uvr calibrate")


@click.command()
@click.argument("model")
@click.argument("bank", type=PATH)
@click.option("--unsafe", type=PATH, required=True, help="Prompts that show the concept, others than for collecting.")
@click.option("--benign", type=PATH, required=True, help="Prompts without it.")
@click.option("--masks", metavar="SOURCE", help=f"Measure and tune the patches as well, by {MASKS}")
@click.option(
    "--text",
    "by_text",
    is_flag=True,
    help="Learn which tokens of a prompt carry it too: where prompts say no place. Needs --masks.",
)
@click.option("--detector", default="contrast", show_default=True, help="Whose scores are calibrated.")
@click.option(
    "--max-false-positive",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.01,
    show_default=True,
    help="Share of benign images in which the concept may be located.",
)
@click.option("--out", type=PATH, required=True, help="The calibrated concept file to write; may be BANK itself.")
@generation_options
@json_option
@click.pass_context
def calibrate(
    ctx: click.Context,
    model: str,
    bank: Path,
    unsafe: Path,
    benign: Path,
    masks: str | None,
    by_text: bool,
    detector: str,
    max_false_positive: float,
    out: Path,
    settings: Settings,
    as_json: bool,
) -> None:
    """Choose probe block, window and threshold of the concept file BANK on MODEL.

    Exits with 1, writing nothing, if no threshold within the budget locates the concept in any unsafe image.
    """
    if by_text and not masks:
        raise click.UsageError("--text: say with --masks where the concept is", ctx)
    shown, others = texts_of(unsafe, say), texts_of(benign, say)
    for kind, name in (("detector", detector), ("adapter", settings.adapter)):
        check_registered(kind, name)
    check_file(out)
    before = uvr_core.load_concepts(bank)
    source = mask_source(masks, before.name, len(shown))[0] if masks else None
    images = len(shown) + len(others)
    if by_text:
        images += finder_of(source, Terms(before.name)).passes * len(shown) + len(others)
    with _drawing(model, settings, f"calibrating {before.name}", images) as (pipe, options):
        after = uvr_core.calibrate(
            pipe, before, shown, others, max_false_positive, detector=detector, masks=source, **options
        )
        if by_text:
            after = uvr_core.calibrate_text(pipe, after, shown, others, masks=source, **options)
    calibration = after.calibration
    assert calibration is not None
    recall, false = calibration.measured["recall"], calibration.measured["false_positive"]
    if recall == 0:
        say(
            f"{before.name}: no threshold within {max_false_positive:.3g} false positives locates the concept in "
            f"any of {len(shown)} unsafe images; nothing written; check the prompts, or collect on more of them"
        )
        ctx.exit(1)
    after.save(out)
    names = ("detector", "probe", "window", "threshold", "grow", "min_patches", "memory", "measured")
    facts = {name: getattr(calibration, name) for name in names}
    if after.text is not None:
        facts["text"] = attrs.asdict(after.text)
    window = f"noise {calibration.window[0]:.2f} to {calibration.window[1]:.2f}"
    _tell(
        {"file": str(out), "name": after.name, **facts},
        as_json,
        f"{out}: {after.name} by {calibration.detector} at {calibration.probe}, {window}, threshold "
        f"{calibration.threshold:.3g}: located in {recall:.1%} of {len(shown)} unsafe and {false:.1%} of "
        f"{len(others)} benign images",
    )


def _tell(result: dict[str, Any], as_json: bool, text: str) -> None:
    click.echo(to_json(result) if as_json else text)
