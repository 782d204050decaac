"""`uvr analyze`: what flows where inside a model while it draws, and where a concept can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import click

from ..errors import UVRError
from ..files import read_picture, to_json
from ..signatures import needs_source, takes_source
from . import load, output, say
from .options import Settings, check_registered, generation_options, json_option
from .progress import progress
from .prompts import Prompt, prompts_of
from .regions import mask_source

SCHEMA = "uvr.analysis/1"
FILE = "analysis.json"


@click.command()
@click.argument("model")
@click.option("--prompt", "texts", multiple=True, metavar="TEXT", help="A prompt or an instruction; may be repeated.")
@click.option("--prompts", "file", type=click.Path(path_type=Path), help="A .txt, .csv or .jsonl file of prompts.")
@click.option(
    "--image", "pictures", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="A source picture, for a model that edits; repeatable, one per prompt, or one for all.",
)  # fmt: skip
@click.option("--concept", metavar="FILE_OR_NAME", help="A concept: score its patches at every step.")
@click.option("--detector", help="How patches are scored; else what the concept was calibrated with.")
@click.option(
    "--masks", metavar="SOURCE",
    help="JUDGE[:label,label] that points at the concept in the drawn pictures, or a folder of PNG masks: tell flows "
    "into those patches apart, and measure the localisation of --concept.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help=f"Folder for {FILE} and the figures.")
@click.option("--overwrite", is_flag=True, help="Write into a folder that holds an analysis already.")
@generation_options
@json_option
def analyze(
    model: str,
    texts: tuple[str, ...],
    file: Path | None,
    pictures: tuple[Path, ...],
    concept: str | None,
    detector: str | None,
    masks: str | None,
    out: Path,
    overwrite: bool,
    settings: Settings,
    as_json: bool,
) -> None:
    """Draw what flows where inside MODEL, block by block and step by step, while nothing is regulated.

    Writes flows.png (attention between text, output and source picture, over steps), heatmap.png (by block and step)
    and analysis.json; with --concept masks.gif and masks.png (its patches over steps), and with --masks as well
    localisation.png. At least 5 prompts are needed to tell a stage from chance.
    """
    from .. import figures

    prompts = prompts_of(texts, file)
    if len(pictures) not in (0, 1, len(prompts)):
        raise UVRError(f"--image: expected one, or one per prompt ({len(prompts)}), got {len(pictures)}")
    for kind, name in (("detector", detector), ("adapter", settings.adapter)):
        check_registered(kind, name)
    if detector is not None and concept is None:
        raise UVRError("--detector: give the --concept that it is to score")
    figures.require()
    bank = _bank(concept)
    if masks is not None and bank is None and ":" not in masks and not Path(masks).is_dir():
        raise UVRError(f"--masks {masks}: say what it is to look for, {masks}:LABEL,LABEL, or give a --concept")
    source, word = mask_source(masks, bank.name if bank else "", len(prompts)) if masks else (None, None)
    sources = [read_picture(path, settings.size, option="--image") for path in pictures]
    with output.folder(out, overwrite=overwrite, report=FILE) as stage:
        pipe = load.load_model(model, settings)
        _check_sources(pipe, bool(sources))
        call = settings.call(pipe)
        found = _measure(pipe, prompts, sources, source, bank, detector, settings, call)
        threshold = _threshold(bank, detector)
        data = {
            "schema": SCHEMA,
            "model": model,
            "pipeline": type(pipe).__name__,
            "settings": {
                **attrs.asdict(settings), "device": str(pipe.device), "dtype": str(pipe.dtype).removeprefix("torch."),
                "call": call,
            },
            "versions": output.versions(),
            "commit": output.commit(),
            "prompts": [{"prompt": p.text, "seed": s} for p, s in zip(prompts, settings.seeds(prompts), strict=True)],
            "concept": None if bank is None else {
                "name": bank.name, "detector": detector or _own_detector(bank), "threshold": threshold,
                "probes": list(bank.probes),
            },
            "masks": word,
            **found.to_dict(),
            "files": _draw(found, stage, threshold),
        }  # fmt: skip
        text = to_json(data)
        (stage / FILE).write_text(text + "\n", "utf-8")
    if as_json:
        click.echo(text)
    else:
        _show(data, out)


def _bank(concept: str | None) -> Any:
    if concept is None:
        return None
    from ..concepts import resolve

    ((bank, _),) = resolve([concept])
    return bank


def _own_detector(bank: Any) -> str:
    return bank.calibration.detector if bank.calibration else "contrast"


def _threshold(bank: Any, detector: str | None) -> float | None:
    """The calibrated threshold, if it is one of this detector's."""
    if bank is None or bank.calibration is None or detector not in (None, bank.calibration.detector):
        return None
    return float(bank.calibration.threshold)


def _check_sources(pipe: Any, given: bool) -> None:
    """Refuse a source picture that the model does not take, and an editing model without one."""
    if given and not takes_source(pipe):
        raise UVRError(f"--image: {type(pipe).__name__} takes no source picture; leave the option out")
    if not given and needs_source(pipe):
        raise UVRError(f"{type(pipe).__name__} edits pictures: give --image FILE")


def _measure(
    pipe: Any, prompts: list[Prompt], sources: list[Any], masks: Any, bank: Any, detector: str | None,
    settings: Settings, call: dict[str, Any],
) -> Any:  # fmt: skip
    from ..analysis import flows

    pictures = (sources * len(prompts) if len(sources) == 1 else sources) or None
    with progress("analysing", len(prompts)) as advance, load.running(pipe):
        return flows(
            pipe, [prompt.text for prompt in prompts], pictures, masks=masks, bank=bank, detector=detector,
            adapter=settings.adapter, seed=settings.seeds(prompts), batch_size=settings.batch, generate=call,
            progress=advance,
        )  # fmt: skip


def _draw(found: Any, stage: Path, threshold: float | None) -> list[str]:
    """The figures; their file names."""
    from .. import figures
    from ..analysis import localisation

    figures.draw_flows(found, stage / "flows.png")
    figures.draw_heatmap(found, stage / "heatmap.png")
    files = ["flows.png", "heatmap.png"]
    if found.scores:
        files += figures.draw_masks(found, next(iter(found.scores)), stage, threshold)
    if localisation(found):
        figures.draw_localisation(found, stage / "localisation.png")
        files.append("localisation.png")
    elif found.scores and found.masks is not None:
        say("note: no drawn picture shows the concept according to the masks: no localisation.png")
    return files


def _show(data: dict[str, Any], out: Path) -> None:
    click.echo(
        f"{data['model']}: {data['pipeline']}, {data['images']} images, {data['steps']} steps, {len(data['blocks'])} "
        f"blocks, {data['seconds']:.1f} s"
    )
    for into, stages in data["stages"].items():
        click.echo(f"into {into} patches:" if into == "located" else "into the picture:")
        for name, stage in stages.items():
            seen = {True: "seen", False: "not seen", None: "none"}[stage["seen"]]
            click.echo(f"    {name}: {seen}; {stage['why']}")
    for probe, line in data["localisation"].items():
        click.echo(
            f"localisation at {probe}: patch AUROC {line['auroc'][0]:.2f} at step 0, {line['auroc'][-1]:.2f} at the "
            f"last, {line['images']} images"
        )
    click.echo(f"{FILE}, {', '.join(data['files'])} in {out}")
