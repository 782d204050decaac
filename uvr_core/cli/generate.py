"""`uvr generate` and `uvr edit`: pictures of any diffusers checkpoint, regulated, with an account of what ran."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

import uvr_core

from ..errors import UVRError
from ..files import read_picture, to_json
from ..sampling import Sampling
from ..signatures import needs_source, takes_source
from . import load, output, say
from .options import Settings, check_registered, generation_options, json_option
from .progress import counter, stages
from .prompts import Prompt, prompts_of
from .report import SCHEMA, show_report

PATH = click.Path(path_type=Path)
_COMMON = (
    click.option("--concept", "concepts", multiple=True, metavar="FILE_OR_NAME", help="A concept; repeatable."),
    click.option("--policy", default="selective", show_default=True, help="What is done to located patches."),
    click.option("--detector", help="How patches are located; else what each concept was calibrated with."),
    click.option("--threshold", type=float, help="Score from which a patch is a hit; else each concept's own."),
    click.option("--out", type=PATH, required=True, help="Folder for pictures and report.json."),
    click.option("--overwrite", is_flag=True, help="Write into a folder that holds a run already."),
    generation_options,
    json_option,
)


@attrs.frozen(kw_only=True)
class _Task:
    """What `generate` and `edit` alike are told."""

    model: str
    concepts: Sequence[str]
    policy: str
    detector: str | None
    threshold: float | None
    out: Path
    overwrite: bool
    settings: Settings
    as_json: bool

    def check(self) -> None:
        """Raise UVRError for what can be told to be wrong before anything is loaded."""
        for kind, name in (("policy", self.policy), ("detector", self.detector), ("adapter", self.settings.adapter)):
            check_registered(kind, name)
        if self.threshold is not None and not abs(self.threshold) < float("inf"):
            raise UVRError(f"--threshold: expected a finite number, got {self.threshold}")


def _common(command: Any) -> Any:
    """The options that `generate` and `edit` share."""
    for option in reversed(_COMMON):
        command = option(command)
    return command


@click.command()
@click.argument("model")
@click.option("--prompt", "texts", multiple=True, metavar="TEXT", help="A prompt; may be repeated.")
@click.option("--prompts", "file", type=PATH, help="A .txt, .csv or .jsonl file of prompts.")
@_common
def generate(texts: tuple[str, ...], file: Path | None, **options: Any) -> None:
    """Generate pictures with MODEL, regulating the concepts given, and write report.json beside them.

    With no --concept nothing is regulated: the taps are verified and the report says so.
    """
    _carry_out(_Task(**options), prompts_of(texts, file), None)


@click.command()
@click.argument("model")
@click.option(
    "--image",
    "images",
    multiple=True,
    type=PATH,
    metavar="FILE",
    help="A source picture; repeatable, one per --instruction, or one for all.",
)
@click.option("--instruction", "texts", multiple=True, metavar="TEXT", help="What to do with it; repeatable.")
@_common
def edit(images: tuple[Path, ...], texts: tuple[str, ...], **options: Any) -> None:
    """Edit pictures with MODEL (FLUX Kontext, Qwen-Image-Edit), regulating the concepts given.

    A concept is located in what is being drawn, whether the instruction or the source picture brings it in. Writes
    the pictures and report.json.
    """
    if not texts or not images:
        raise click.UsageError("give --image FILE and --instruction TEXT", click.get_current_context())
    if len(images) not in (1, len(texts)):
        raise UVRError(f"--image: expected one, or one per --instruction ({len(texts)}), got {len(images)}")
    if not all(text.strip() for text in texts):
        raise UVRError("--instruction: the instruction is empty")
    task = _Task(**options)
    sources = [read_picture(path, task.settings.size, option="--image") for path in images]
    _carry_out(task, [Prompt(text) for text in texts], sources * len(texts) if len(sources) == 1 else sources)


def _carry_out(task: _Task, prompts: Sequence[Prompt], sources: Sequence[Any] | None) -> None:
    """Draw the pictures; all of them and the report are in the folder at the end, or nothing is."""
    task.check()
    from ..concepts import resolve

    banks = [bank for bank, _ in resolve(list(task.concepts) or None)]
    if not banks:
        say("note: no --concept given: this run only observes, nothing is regulated")
    settings = task.settings
    with output.folder(task.out, overwrite=task.overwrite) as stage, stages() as show:
        show(f"loading {task.model}", 0, 0)
        pipe = load.load_model(task.model, settings)
        call = settings.call(pipe)
        _check_kind(pipe, sources is not None)
        texts = [prompt.text for prompt in prompts]
        sampling = Sampling(texts, settings.seeds(prompts), {"image": sources}, call, settings.batch)
        plan: dict[str, Any] = {"policy": task.policy, "detector": task.detector, "threshold": task.threshold}
        with uvr_core.attach(pipe, settings.adapter, concepts=banks, **plan) as reg:
            with load.running(pipe):
                images = _draw(sampling, pipe, reg, stage, counter(show, "generating", len(prompts)))
            text = to_json(_report(task, pipe, reg, call, images))
        (stage / output.REPORT).write_text(text + "\n", "utf-8")
    if task.as_json:
        click.echo(text)
        return
    show_report(json.loads(text))
    withheld = sum(image["file"] is None for image in images)
    kept_back = f", {withheld} refused" if withheld else ""
    click.echo(f"{len(images) - withheld} pictures and {output.REPORT} in {task.out}{kept_back}")


def _check_kind(pipe: Any, editing: bool) -> None:
    """Refuse an editing model for `generate` and a generating one for `edit`."""
    if editing and not takes_source(pipe):
        raise UVRError(f"{type(pipe).__name__} takes no source picture: use `uvr generate`")
    if not editing and needs_source(pipe):
        raise UVRError(f"{type(pipe).__name__} edits pictures: use `uvr edit`")


def _draw(
    sampling: Sampling, pipe: Any, reg: uvr_core.Regulator, stage: Path, progress: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Save the pictures as they come; the entries of the report, one per image. A withheld image has no file."""
    entries: list[dict[str, Any]] = []
    digits = max(4, len(str(len(sampling.prompts) - 1)))
    for batch in sampling.draw(pipe, reg, progress):
        assert batch.report is not None
        report = batch.report.to_dict()
        for sample, picture in enumerate(batch.images):
            place = batch.first + sample
            file = None if picture is None else f"{place:0{digits}d}.png"
            if file is not None:
                picture.save(stage / file)
            findings = [finding for finding in report["findings"] if finding["sample"] == sample]
            entries.append(
                {
                    "file": file,
                    "prompt": sampling.prompts[place],
                    "seed": sampling.seeds[place],
                    **{key: report[key] for key in ("posture", "steps", "fired")},
                    "findings": [{key: finding[key] for key in finding if key != "sample"} for finding in findings],
                }
            )
    return entries


def _report(
    task: _Task, pipe: Any, reg: uvr_core.Regulator, call: dict[str, Any], images: list[dict[str, Any]]
) -> dict[str, Any]:
    """The contents of report.json."""
    return {
        "schema": SCHEMA,
        "model": task.model,
        "pipeline": type(pipe).__name__,
        "adapter": reg.adapter.name,
        "taps": len(reg.taps),
        "concepts": [_describe(concept) for concept in reg.plan],
        "settings": {**load.facts(pipe, task.settings), "policy": task.policy, "call": call},
        "versions": output.versions(),
        "images": images,
    }


def _describe(rule: Any) -> dict[str, Any]:
    names = ("name", "detector_name", "policy_name", "probe", "window", "threshold", "grow", "min_patches", "memory")
    return {
        **{name.removesuffix("_name"): getattr(rule, name) for name in names},
        "fingerprint": attrs.asdict(rule.bank.fingerprint),
    }
