"""`uvr analyze`: what flows where inside a model while it draws, and where a concept can be told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from uvr_core.cli import load, output, say
from uvr_core.cli.options import Settings, check_registered, generation_options, json_option
from uvr_core.cli.progress import counter, stages
from uvr_core.cli.prompts import Prompt, prompts_of
from uvr_core.cli.regions import mask_source
from uvr_core.errors import UVRError
from uvr_core.files import read_picture, to_json
from uvr_core.signatures import needs_source, takes_source

if TYPE_CHECKING:
    from uvr_core import ConceptBank

    from .flows import Flows

PATH = click.Path(path_type=Path)
SCHEMA = "uvr.analysis/1"
FILE = "analysis.json"


@attrs.frozen(kw_only=True)
class _Task:
    """What is measured, once it is read; see `analyze`."""

    model: str
    prompts: Sequence[Prompt]
    sources: Sequence[Any]
    bank: ConceptBank | None
    detector: str | None
    masks: Any
    masks_from: str | None
    settings: Settings

    @property
    def threshold(self) -> float | None:
        """The calibrated threshold, if it is one of this detector's."""
        calibration = self.bank.calibration if self.bank is not None else None
        if calibration is None or self.detector not in (None, calibration.detector):
            return None
        return float(calibration.threshold)

    @property
    def concept(self) -> dict[str, Any] | None:
        """The concept as analysis.json describes it."""
        if self.bank is None:
            return None
        calibrated = self.bank.calibration.detector if self.bank.calibration else "contrast"
        detector, probes = self.detector or calibrated, list(self.bank.probes)
        return {"name": self.bank.name, "detector": detector, "threshold": self.threshold, "probes": probes}


@click.command()
@click.argument("model")
@click.option("--prompt", "texts", multiple=True, metavar="TEXT", help="A prompt or an instruction; may be repeated.")
@click.option("--prompts", "file", type=PATH, help="A .txt, .csv or .jsonl file of prompts.")
@click.option(
    "--image",
    "pictures",
    multiple=True,
    type=PATH,
    metavar="FILE",
    help="A source picture, for a model that edits; repeatable, one per prompt, or one for all.",
)
@click.option("--concept", metavar="FILE_OR_NAME", help="A concept: score its patches at every step.")
@click.option("--detector", help="How patches are scored; else what the concept was calibrated with.")
@click.option(
    "--masks",
    metavar="SOURCE",
    help="JUDGE[:label,label] that points at the concept in the drawn pictures, or a folder of PNG masks: tell flows "
    "into those patches apart, and measure the localisation of --concept.",
)
@click.option("--out", type=PATH, required=True, help=f"Folder for {FILE} and the figures.")
@click.option("--overwrite", is_flag=True, help="Write into a folder that holds an analysis already.")
@generation_options
@json_option
def analyze(
    texts: tuple[str, ...], file: Path | None, out: Path, overwrite: bool, as_json: bool, **options: Any
) -> None:
    """Draw what flows where inside MODEL, block by block and step by step, while nothing is regulated.

    Writes flows.png (attention between text, output and source picture, over steps), heatmap.png (by block and step)
    and analysis.json; with --concept masks.gif and masks.png (its patches over steps), and with --masks as well
    localisation.png. At least 5 prompts are needed to tell a stage from chance.
    """
    task = _read(prompts=prompts_of(texts, file), **options)
    with output.folder(out, overwrite=overwrite, report=FILE) as stage:
        data = _analyse(task, stage)
        text = to_json(data)
        (stage / FILE).write_text(text + "\n", "utf-8")
    if as_json:
        click.echo(text)
        return
    from . import summary

    click.echo(summary.text(data))
    click.echo(f"{FILE}, {', '.join(data['files'])} in {out}")


def _read(
    *,
    model: str,
    prompts: Sequence[Prompt],
    pictures: Sequence[Path],
    concept: str | None,
    detector: str | None,
    masks: str | None,
    settings: Settings,
) -> _Task:
    """Read what the options name, before a model is loaded.

    Raises:
        UVRError: it does not fit together, or cannot be read.
    """
    from uvr_core.concepts import resolve

    from . import figures

    if len(pictures) not in (0, 1, len(prompts)):
        raise UVRError(f"--image: expected one, or one per prompt ({len(prompts)}), got {len(pictures)}")
    for kind, name in (("detector", detector), ("adapter", settings.adapter)):
        check_registered(kind, name)
    if detector is not None and concept is None:
        raise UVRError("--detector: give the --concept that it is to score")
    figures.require()
    bank = None if concept is None else resolve([concept])[0][0]
    if masks is not None and bank is None and ":" not in masks and not Path(masks).is_dir():
        raise UVRError(f"--masks {masks}: say what it is to look for, {masks}:LABEL,LABEL, or give a --concept")
    source, word = mask_source(masks, bank.name if bank else "", len(prompts)) if masks else (None, None)
    images = [read_picture(path, settings.size, option="--image") for path in pictures]
    images = images * len(prompts) if len(images) == 1 else images
    named = {"model": model, "detector": detector, "settings": settings}
    return _Task(prompts=prompts, sources=images, bank=bank, masks=source, masks_from=word, **named)


def _analyse(task: _Task, stage: Path) -> dict[str, Any]:
    """Draw, measure, and put the figures into the folder; the contents of analysis.json."""
    from . import summary
    from .measure import measure_flows

    settings, texts = task.settings, [prompt.text for prompt in task.prompts]
    seeds = settings.seeds(task.prompts)
    with stages() as show:
        show(f"loading {task.model}", 0, 0)
        pipe = load.load_model(task.model, settings)
        _check_sources(pipe, bool(task.sources))
        call = settings.call(pipe)
        with load.running(pipe):
            flows = measure_flows(
                pipe,
                texts,
                task.sources or None,
                masks=task.masks,
                bank=task.bank,
                detector=task.detector,
                adapter=settings.adapter,
                seed=seeds,
                batch_size=settings.batch,
                generate=call,
                progress=counter(show, "analysing", len(texts)),
            )
    return {
        "schema": SCHEMA,
        "model": task.model,
        "pipeline": type(pipe).__name__,
        "settings": {**load.facts(pipe, settings), "call": call},
        "versions": output.versions(),
        "commit": output.commit(),
        "prompts": [{"prompt": text, "seed": seed} for text, seed in zip(texts, seeds, strict=True)],
        "concept": task.concept,
        "masks": task.masks_from,
        **summary.to_dict(flows),
        "files": _draw(flows, stage, task.threshold),
    }


def _check_sources(pipe: Any, editing: bool) -> None:
    """Refuse a source picture that the model does not take, and an editing model without one."""
    if editing and not takes_source(pipe):
        raise UVRError(f"--image: {type(pipe).__name__} takes no source picture; leave the option out")
    if not editing and needs_source(pipe):
        raise UVRError(f"{type(pipe).__name__} edits pictures: give --image FILE")


def _draw(flows: Flows, stage: Path, threshold: float | None) -> list[str]:
    """The figures; their file names."""
    from . import figures
    from .localisation import localisation_of

    figures.draw_flows(flows, stage / "flows.png")
    figures.draw_heatmap(flows, stage / "heatmap.png")
    files = ["flows.png", "heatmap.png"]
    if flows.scores:
        files += figures.draw_masks(flows, next(iter(flows.scores)), stage, threshold)
    if localisation_of(flows):
        figures.draw_localisation(flows, stage / "localisation.png")
        files.append("localisation.png")
    elif flows.scores and flows.masks is not None:
        say("note: no drawn picture shows the concept according to the masks: no localisation.png")
    return files
