"""`uvr generate` and `uvr edit`: pictures of any diffusers checkpoint, regulated, with an account of what ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import click

from ..errors import UnsafeContent, UVRError
from ..files import read_picture
from ..signatures import needs_source, takes_source
from . import inputs, models, outputs, say
from .inputs import Prompt, Settings

SCHEMA = "uvr.report/1"


def _common(function: Any) -> Any:
    """The options that `generate` and `edit` share."""
    for option in reversed(
        (
            click.option("--concept", "concepts", multiple=True, metavar="FILE_OR_NAME", help="A concept; repeatable."),
            click.option("--policy", default="selective", show_default=True, help="What is done to located patches."),
            click.option("--detector", help="How patches are located; else what each concept was calibrated with."),
            click.option("--threshold", type=float, help="Score from which a patch is a hit; else each concept's own."),
            click.option(
                "--out", type=click.Path(path_type=Path), required=True, help="Folder for pictures and report.json."
            ),
            click.option("--overwrite", is_flag=True, help="Write into a folder that holds a run already."),
            inputs.generation_options,
            inputs.json_option,
        )
    ):
        function = option(function)
    return function


@click.command()
@click.argument("model")
@click.option("--prompt", "texts", multiple=True, metavar="TEXT", help="A prompt; may be repeated.")
@click.option("--prompts", "file", type=click.Path(path_type=Path), help="A .txt, .csv or .jsonl file of prompts.")
@_common
def generate(model: str, texts: tuple[str, ...], file: Path | None, **options: Any) -> None:
    """Generate pictures with MODEL, regulating the concepts given, and write report.json beside them.

    With no --concept nothing is regulated: the taps are verified and the report says so.
    """
    _regulated(model, _prompts(texts, file), None, **options)


@click.command()
@click.argument("model")
@click.option(
    "--image", "images", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="A source picture; repeatable, one per --instruction, or one for all.",
)  # fmt: skip
@click.option("--instruction", "texts", multiple=True, metavar="TEXT", help="What to do with it; repeatable.")
@_common
def edit(model: str, images: tuple[Path, ...], texts: tuple[str, ...], **options: Any) -> None:
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
    sources = [read_picture(path, options["settings"].size, option="--image") for path in images]
    prompts = [Prompt(text) for text in texts]
    _regulated(model, prompts, sources * len(texts) if len(sources) == 1 else sources, **options)


def _regulated(
    model: str,
    prompts: list[Prompt],
    sources: list[Any] | None,
    *,
    concepts: tuple[str, ...],
    policy: str,
    detector: str | None,
    threshold: float | None,
    out: Path,
    overwrite: bool,
    settings: Settings,
    as_json: bool,
) -> None:
    for kind, name in (("policy", policy), ("detector", detector), ("adapter", settings.adapter)):
        inputs.known(kind, name)
    if threshold is not None and not abs(threshold) < float("inf"):
        raise UVRError(f"--threshold: expected a finite number, got {threshold}")
    from ..concepts import resolve

    banks = [bank for bank, _ in resolve(list(concepts) or None)]
    if not banks:
        say("note: no --concept given: this run only observes, nothing is regulated")
    with outputs.folder(out, overwrite=overwrite) as stage:
        pipe = models.load_model(model, settings)
        call = settings.call(pipe)
        _check_kind(pipe, sources is not None)
        from ..regulator import attach

        with attach(
            pipe, settings.adapter, concepts=banks, detector=detector, policy=policy, threshold=threshold
        ) as reg:
            with models.running(pipe):
                images = _run(reg, pipe, prompts, sources, settings, call, stage)
            report = {
                "schema": SCHEMA,
                "model": model,
                "pipeline": type(pipe).__name__,
                "adapter": reg.adapter.name,
                "taps": len(reg.taps),
                "concepts": [_describe(rule) for rule in reg.rules],
                "settings": {
                    **attrs.asdict(settings),
                    "device": str(pipe.device),
                    "dtype": str(pipe.dtype).removeprefix("torch."),
                    "policy": policy,
                    "call": call,
                },
                "versions": outputs.versions(),
                "images": images,
            }
        text = outputs.to_json(report)
        (stage / outputs.REPORT).write_text(text + "\n", "utf-8")
    if as_json:
        click.echo(text)
    else:
        from .listing import show_report

        show_report(outputs.finite(report))
        refused = sum(image["file"] is None for image in images)
        kept_back = f", {refused} refused" if refused else ""
        click.echo(f"{len(images) - refused} pictures and {outputs.REPORT} in {out}{kept_back}")


def _check_kind(pipe: Any, editing: bool) -> None:
    """Refuse an editing model for `generate` and a generating one for `edit`."""
    if editing and not takes_source(pipe):
        raise UVRError(f"{type(pipe).__name__} takes no source picture: use `uvr generate`")
    if not editing and needs_source(pipe):
        raise UVRError(f"{type(pipe).__name__} edits pictures: use `uvr edit`")


def _prompts(texts: tuple[str, ...], file: Path | None) -> list[Prompt]:
    if bool(texts) == (file is not None):
        raise click.UsageError("give --prompt TEXT, or --prompts FILE, and not both", click.get_current_context())
    if file is not None:
        return inputs.read_prompts(file)
    if not all(text.strip() for text in texts):
        raise UVRError("--prompt: the prompt is empty")
    return [Prompt(text) for text in texts]


def _describe(rule: Any) -> dict[str, Any]:
    names = ("name", "detector_name", "policy_name", "probe", "window", "threshold", "grow", "min_patches", "memory")
    return {
        **{name.removesuffix("_name"): getattr(rule, name) for name in names},
        "fingerprint": attrs.asdict(rule.bank.fingerprint),
    }


def _run(
    reg: Any,
    pipe: Any,
    prompts: list[Prompt],
    sources: list[Any] | None,
    settings: Settings,
    call: dict[str, Any],
    stage: Path,
) -> list[dict[str, Any]]:
    """Generate in batches; the entries of the report, one per image. A refused image has no file."""
    import torch

    entries: list[dict[str, Any]] = []
    seeds = settings.seeds(prompts)
    digits = max(4, len(str(len(prompts) - 1)))
    with outputs.progress("generating", len(prompts)) as advance:
        for start in range(0, len(prompts), settings.batch):
            chunk, chosen = prompts[start : start + settings.batch], seeds[start : start + settings.batch]
            generators = [torch.Generator().manual_seed(seed) for seed in chosen]
            given = {} if sources is None else {"image": sources[start : start + settings.batch]}
            batch = {"prompt": [prompt.text for prompt in chunk], **given, **call}
            if isinstance(batch.get("negative_prompt"), str):
                batch["negative_prompt"] = [batch["negative_prompt"]] * len(chunk)
            try:
                pictures = pipe(generator=generators, **batch).images
            except UnsafeContent:  # every image of the batch
                pictures = [None] * len(chunk)
            report = reg.report.to_dict()
            for sample, picture in enumerate(pictures):
                file = None if picture is None else f"{start + sample:0{digits}d}.png"
                if file is not None:
                    picture.save(stage / file)
                findings = [
                    {key: value for key, value in finding.items() if key != "sample"}
                    for finding in report["findings"]
                    if finding["sample"] == sample
                ]
                entries.append(
                    {
                        "file": file,
                        "prompt": chunk[sample].text,
                        "seed": chosen[sample],
                        "posture": report["posture"],
                        "steps": report["steps"],
                        "fired": report["fired"],
                        "findings": findings,
                    }
                )
            advance(len(pictures))
    return entries
