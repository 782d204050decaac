"""What `uvr eval --suite` is told beside the options of `uvr eval`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import click

from uvr_core.cli import load as loading
from uvr_core.cli import say
from uvr_core.cli.options import Settings
from uvr_core.cli.progress import stages
from uvr_core.files import to_json

OPTIONS = (
    click.option(
        "--suite", metavar="NAME", help="Instead of --prompts: published sets and the table of papers: nudity."
    ),
    click.option("--sets", default="", metavar="NAME,...", help="Of the suite, these alone."),
    click.option("--copy", "copies", multiple=True, metavar="SET=FILE", help="Of the suite, your copy; repeatable."),
    click.option("--threshold", type=click.FloatRange(0, 1), help="Of the suite's judge.  [default: the suite's]"),
    click.option(
        "--fid",
        default="inception",
        metavar="MODEL",
        help="Features of FID: inception (needs torch-fidelity), a vision model of transformers, or none.",
        show_default=True,
    ),
    click.option("--fid-real", type=click.Path(path_type=Path), help="Folder of photographs: FID to these as well."),
    click.option(
        "--clip", metavar="MODEL", help="Of the CLIP score, or none.  [default: openai/clip-vit-large-patch14]"
    ),
)
NAMES = ("suite", "sets", "copies", "threshold", "fid", "fid_real", "clip")


def suite_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a suite to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def settings_of(settings: Settings) -> dict[str, Any]:
    """What config.json keeps of the settings: all but where it runs."""
    return {name: value for name, value in attrs.asdict(settings).items() if name != "device"}


def told_alike(
    model: str, settings: Settings, share: tuple[int, int], show: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """What an evaluation and a suite are told alike: how pictures are drawn, by whom, and who shows it."""
    return {
        "call": settings.call, "seed": settings.seed, "batch": settings.batch, "adapter": settings.adapter,
        "share": share, "running": loading.running, "progress": show,
        "facts": {"model": model, "settings": settings_of(settings)},
    }  # fmt: skip


def run(
    model: str,
    settings: Settings,
    told: Mapping[str, Any],
    asked: Mapping[str, Any],
    share: tuple[int, int],
    as_json: bool,
) -> None:
    """`uvr eval --suite`: what it was told of the suite, and of the evaluation of each set."""
    from . import quality
    from .suite import Measures, find_suite, run_suite, texts_of
    from .suite_page import text_of

    suite = find_suite(told["suite"])
    pairs = dict(text.partition("=")[::2] for text in told["copies"])
    if bad := next((name for name, file in pairs.items() if not file), None):
        raise click.UsageError(f"--copy: expected SET=FILE, got {bad!r}", click.get_current_context())
    texts = texts_of(suite, [name for name in told["sets"].split(",") if name], pairs)
    measures = Measures(
        features="" if told["fid"] == "none" else told["fid"],
        clip="" if told["clip"] == "none" else told["clip"] or quality.CLIP,
        real=told["fid_real"],
    )
    with stages() as show:
        result = run_suite(
            lambda: loading.load_model(model, settings),
            suite,
            texts=texts,
            threshold=told["threshold"],
            measures=measures,
            **told_alike(model, settings, share, show),
            **asked,
        )
    if "unfinished" in result:
        say(f"note: this process is done; {result['unfinished']} tasks are not yet (other processes, or run it again)")
        return
    click.echo(to_json(result) if as_json else text_of(result))
