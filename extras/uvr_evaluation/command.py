"""`uvr eval`: the same prompts under policies, controls and baselines, judged, resumable, with intervals."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from ..errors import UVRError
from ..files import finite, to_json, write_whole
from . import inputs, models, outputs, say
from .inputs import Settings

PATH = click.Path(path_type=Path)
CONFIG, SUMMARY = "config.json", "summary.json"


def _variations(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, list[str]]:
    """NAME=VALUE[,VALUE...], repeatable -> {name: values}."""
    found: dict[str, list[str]] = {}
    for text in values:
        name, sign, listed = text.partition("=")
        chosen = [value for value in listed.split(",") if value]
        if not sign or not name or not chosen:
            raise click.BadParameter(f"expected NAME=VALUE[,VALUE...], got {text!r}", ctx, param)
        found.setdefault(name, []).extend(chosen)
    return found


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    """LABEL=FILE, repeatable."""
    pairs = [(label, file) for label, _, file in (text.partition("=") for text in values)]
    if bad := next((text for text, (label, file) in zip(values, pairs, strict=True) if not label or not file), None):
        raise click.BadParameter(f"expected LABEL=FILE, got {bad!r}", ctx, param)
    return pairs


@click.command("eval")
@click.argument("model")
@click.option(
    "--prompts", "file", type=PATH, required=True,
    help="The prompt set (.csv, .jsonl, .parquet): prompt or instruction, concept, seed, image, expect, absent, group.",
)  # fmt: skip
@click.option("--subjects", type=PATH, help="What judges and prompts call each concept.  [default: subjects.toml]")
@click.option("--concept", "concepts", multiple=True, metavar="FILE_OR_NAME", help="A concept to regulate; repeatable.")
@click.option("--policy", "policies", multiple=True, help="An arm; repeatable.  [default: selective]")
@click.option("--detector", "detectors", multiple=True, help="How patches are located; repeatable.")
@click.option("--baseline", "baselines", multiple=True, help="An arm without UVR; repeatable.")
@click.option(
    "--control", "controls", multiple=True,
    help="oracle (the true mask), random (as many patches, anywhere), observe (locate, do not restrict); repeatable.",
)  # fmt: skip
@click.option(
    "--without", multiple=True, help="noise, attenuation, boost, ring: each policy with that off; repeatable."
)
@click.option(
    "--vary", multiple=True, callback=_variations, metavar="NAME=VALUE,...",
    help="One arm of the first policy per value, of its parameters or of threshold, window=1:0.8, probe, anchors.",
)  # fmt: skip
@click.option(
    "--anchors-from", "others", multiple=True, callback=_pairs, metavar="LABEL=FILE",
    help="One arm of the first policy with this concept file, made in another style, seed or checkpoint; repeatable.",
)  # fmt: skip
@click.option("--judge", "judges", multiple=True, required=True, help="Who says what a picture shows; repeatable.")
@click.option("--lpips", is_flag=True, help="Measure LPIPS too; needs torchvision and its weights.")
@click.option("--out", type=PATH, required=True, help="Result folder. A run that was cut goes on in its own folder.")
@click.option("--overwrite", is_flag=True, help="Begin anew in a folder that holds another evaluation.")
@inputs.generation_options
@inputs.json_option
def evaluate(
    model: str, file: Path, subjects: Path | None, concepts: tuple[str, ...], policies: tuple[str, ...],
    detectors: tuple[str, ...], baselines: tuple[str, ...], controls: tuple[str, ...], without: tuple[str, ...],
    vary: Mapping[str, Sequence[str]], others: Sequence[tuple[str, str]], judges: tuple[str, ...], lpips: bool,
    out: Path, overwrite: bool, settings: Settings, as_json: bool,
) -> None:  # fmt: skip
    """Make the pictures of a prompt set under several arms, judge them, and say what each arm costs and gains.

    Writes one row per picture as it goes; run it again to go on after a crash. Ends with summary.json, report.html and
    a figure in OUT. Several processes share the batches:

        accelerate launch --multi_gpu --num_processes 4 --no_python uvr eval MODEL ...
    """
    for kind, names in (("policy", policies), ("detector", detectors), ("baseline", baselines), ("judge", judges)):
        for given in names:
            inputs.known(kind, given)
    inputs.known("adapter", settings.adapter)
    from ..concepts import resolve
    from ..evaluation import arms as arm_module
    from ..evaluation import tasks as task_module

    tasks = task_module.read_tasks(file, settings.seed)
    beside = subjects or file.parent / task_module.SUBJECTS
    known = task_module.read_subjects(beside) if subjects or beside.is_file() else {}
    banks = [bank for bank, _ in resolve(list(concepts) or None)]
    other = {label: [resolve(path)[0][0]] for label, path in others}
    wanted = dict.fromkeys([*(bank.name for bank in banks), *(task.concept for task in tasks if task.concept)])
    chosen = policies or (("selective",) if banks else ())
    arms = arm_module.plan(
        chosen, detectors, baselines, controls,
        {name: [arm_module.parse_value(value) for value in values] for name, values in vary.items()}, without,
        list(other),
    )  # fmt: skip
    if any(arm.kind == "policy" for arm in arms) and not banks:
        raise UVRError("--policy needs a --concept to regulate")
    made = {name: _judge(name) for name in judges}
    called = task_module.subjects_of(list(wanted), known)
    task_module.check_labels(tasks, called, made)
    process, processes, device = _share(settings.device)
    settings = attrs.evolve(settings, device=device)
    config = {
        "model": model, "prompts": {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
        "tasks": [{**attrs.asdict(task), "image": task.image and task.image.name} for task in tasks],
        "subjects": {name: attrs.asdict(subject) for name, subject in called.items()},
        "concepts": [_described(bank) for bank in banks],
        "anchors_from": {label: _described(made[0]) for label, made in other.items()},
        "arms": [attrs.asdict(arm) for arm in arms], "lpips": lpips,
        "judges": {name: list(getattr(judge, "labels", None) or ()) or None for name, judge in made.items()},
        "settings": {k: v for k, v in attrs.asdict(settings).items() if k != "device"},
    }  # fmt: skip
    if overwrite and processes > 1:
        raise UVRError("--overwrite: several processes would delete one another's rows; remove the folder first")
    _begin(out, config, overwrite)
    pipe = models.load_model(model, settings)
    call = settings.call(pipe)
    from ..evaluation.metrics import Lpips
    from ..evaluation.runner import Evaluation

    evaluation = Evaluation(
        pipe, call, tasks, arms, {"": banks, **other}, called, made, out, settings.batch, settings.adapter,
        Lpips() if lpips else None, settings.size,
    )  # fmt: skip
    share = sum(len(batch) for batch in evaluation.batches()[process::processes])
    with outputs.progress("evaluating", share * len(arms)) as advance, models.running(pipe):
        evaluation.run(process, processes, advance)
    _finish(out, config, as_json)


def _judge(name: str) -> Any:
    from .. import plugins

    factory: Any = plugins.registry().get("judge", name)
    return factory()


def _share(device: str) -> tuple[int, int, str]:
    """Number of this process, of how many, and its device, under `accelerate launch` or torchrun."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes <= 1:
        return 0, 1, device
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    import torch

    cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    return rank, processes, f"cuda:{local % torch.cuda.device_count()}" if cuda else device


def _described(bank: Any) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, tensor in sorted(bank.tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().float().numpy().tobytes())
    calibration = bank.calibration and attrs.asdict(bank.calibration)
    return {"name": bank.name, "sha256": digest.hexdigest(), "calibration": calibration, "provenance": bank.provenance}


# ---------------------------------------------------------------------------------------------- the folder


def _begin(out: Path, config: Mapping[str, Any], overwrite: bool) -> None:
    """Make the folder, or go on in it if it holds the same evaluation.

    Raises:
        UVRError: it holds another one, or something else.
    """
    import json

    path = out / CONFIG
    asked = json.loads(to_json(dict(config)))
    if path.is_file() and not overwrite:
        try:
            there = json.loads(path.read_text("utf-8"))
            ours = {key: there[key] for key in asked}
        except (ValueError, KeyError, TypeError) as error:
            raise UVRError(
                f"{path}: damaged, or of another version ({error}); pass --overwrite to begin anew"
            ) from error
        if differing := [key for key in asked if asked[key] != ours[key]]:
            raise UVRError(
                f"{out}: holds an evaluation with other {' and '.join(differing)}; name another folder, or pass "
                "--overwrite to begin anew"
            )
        return
    outputs.check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for old in [*out.glob("rows-*.jsonl"), out / SUMMARY, out / "report.html"]:
            old.unlink(missing_ok=True)
        shutil.rmtree(out / "images", ignore_errors=True)
    elif any(out.glob("rows-*.jsonl")):
        raise UVRError(f"{out}: holds rows and no {CONFIG}; name another folder, or pass --overwrite to begin anew")
    facts = {"versions": outputs.versions(), "machine": platform.machine(), "git": outputs.commit()}
    write_whole(path, to_json({**asked, **facts}) + "\n")


def _finish(out: Path, config: Mapping[str, Any], as_json: bool) -> None:
    """Write the summary and the report, once every row is there: by whichever process is the last."""
    from ..evaluation import page
    from ..evaluation.rows import read_rows
    from ..evaluation.summary import summarise

    rows = read_rows(out)
    summary = summarise(rows, config)
    if summary["unfinished"]:
        say(f"note: this process is done; {summary['unfinished']} tasks are not yet (other processes, or run it again)")
        return
    write_whole(out / SUMMARY, to_json(summary) + "\n")
    page.write_report(out)
    click.echo(to_json(summary) if as_json else page.text(summary, finite(dict(config))))
