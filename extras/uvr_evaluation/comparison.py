"""`evaluate`: the same prompts under policies, controls and baselines, judged, resumable, with intervals."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import attrs

from uvr_core import ConceptBank, ConceptTerms, Judge, UVRError
from uvr_core.cli import output
from uvr_core.concepts import resolve
from uvr_core.files import to_json, write_whole
from uvr_core.plugins import registry

from . import arms as planning
from .arms import Arm
from .prompt_sets import Task, read_tasks
from .rows import read_rows
from .summary import summarise
from .terms import SUBJECTS, check_labels, read_subjects, subjects_of

CONFIG, SUMMARY = "config.json", "summary.json"
NEEDS = ("jinja2", "matplotlib", "skimage")


def evaluate(
    pipe: Any,
    prompts: str | Path | Sequence[Task],
    out: str | Path,
    *,
    judges: Sequence[str] | Mapping[str, Judge],
    concepts: object = None,
    policies: Sequence[str] | None = None,
    detectors: Sequence[str] = (),
    baselines: Sequence[str] = (),
    controls: Sequence[str] = (),
    without: Sequence[str] = (),
    vary: Mapping[str, Sequence[Any]] | None = None,
    anchors_from: Mapping[str, object] | None = None,
    arms: Sequence[Arm] = (),
    subjects: str | Path | Mapping[str, ConceptTerms] | None = None,
    call: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]] | None = None,
    seed: int = 0,
    batch: int = 4,
    adapter: str | None = None,
    size: tuple[int, int] | None = None,
    lpips: bool = False,
    overwrite: bool = False,
    process: int = 0,
    processes: int = 1,
    facts: Mapping[str, Any] | None = None,
    running: Callable[[Any], AbstractContextManager[Any]] = nullcontext,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Draw a prompt set under several arms, judge the pictures, and say what each arm costs and gains.

    One row per picture is on disk as it goes; called again it goes on where it was cut. Everything that can be told
    to be wrong is, before a model is loaded.

    Args:
        pipe: a diffusers pipeline, or a function without arguments that loads it.
        prompts: a prompt set (see `read_tasks`), or its tasks.
        out: result folder: config.json, rows-*.jsonl, images; summary.json, report.html, pareto.png at the end.
        judges: registered names, or {name: judge}. The first counts; the first that can point draws the true masks.
        concepts: as `uvr_core.attach` takes them.
        policies: registered names; None: "selective", if there are concepts. detectors, baselines, controls,
            without, vary: as `arms.plan` takes them. anchors_from: {label: concept} of further arms. arms: any others.
        subjects: what judges and prompts call each concept; None: subjects.toml beside the prompt set, if there.
        call: keyword arguments of every call of the pipeline, or a function of the pipeline that gives them.
        seed: of a task that has none: `seed` + its place.
        batch: images at a time. adapter: name, or None: recognised. size: (width, height) of source pictures.
        lpips: measure LPIPS too. overwrite: begin anew in a folder that holds another evaluation.
        process, processes: this one of how many share the batches.
        facts: {"model", "settings"}: what config.json says of the model and the call.
        running: a context around the pipeline's calls, made from the pipeline.
        progress: called with (what, images done, images in all).

    Returns:
        The summary (see `summarise`). While `unfinished` in it is not 0, other processes have rows to write.

    Raises:
        UVRError: bad input, or another evaluation is in the folder.
    """
    require()
    out = Path(out)
    question = _asked(prompts, judges, concepts, subjects, anchors_from, seed)
    chosen = tuple(policies or ()) or (("selective",) if question.banks[""] and not arms else ())
    columns = planning.plan(
        chosen, detectors, baselines, controls, vary, without, [label for label in question.banks if label]
    )
    columns += arms
    if any(arm.kind == "policy" for arm in columns) and not question.banks[""]:
        raise UVRError("--policy needs a --concept to regulate")
    check_labels(question.tasks, question.subjects, question.judges)
    if overwrite and processes > 1:
        raise UVRError("--overwrite: several processes would delete one another's rows; remove the folder first")
    known = {} if facts is None else dict(facts)
    if not known:
        options = None if callable(call) else {name: repr(value) for name, value in (call or {}).items()}
        settings = {"call": options, "seed": seed, "batch": batch, "adapter": adapter, "size": size}
        known = {"model": type(pipe).__name__, "settings": settings}
    config = question.config(columns, lpips, known)
    _begin(out, config, overwrite)
    if inspect.isfunction(pipe):
        pipe = pipe()
    from .metrics import Lpips
    from .runner import Evaluation

    evaluation = Evaluation(
        pipe,
        call(pipe) if callable(call) else call or {},
        question.tasks,
        columns,
        question.banks,
        question.subjects,
        question.judges,
        out,
        batch,
        adapter,
        Lpips() if lpips else None,
        size,
    )
    with running(pipe):
        evaluation.run(process, processes, progress)
    return _finish(out, config)


def require() -> None:
    """Raise UVRError, with the remedy, unless what reports are made with is installed. Imports none of it."""
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise UVRError(f"evaluations need {' and '.join(missing)}, not installed here: pip install 'uvr-core[eval]'")


@attrs.frozen(eq=False)
class Question:
    """What an evaluation asks: of which tasks, with which concepts, judged by whom.

    Attributes:
        source: of the prompt set: {"file", "sha256"}.
        banks: {label: banks}; "" are the run's own.
    """

    source: Mapping[str, str]
    tasks: Sequence[Task]
    banks: Mapping[str, Sequence[ConceptBank]]
    subjects: Mapping[str, ConceptTerms]
    judges: Mapping[str, Judge]

    def config(self, arms: Sequence[Arm], lpips: bool, facts: Mapping[str, Any]) -> dict[str, Any]:
        """What config.json says: a run goes on only in a folder whose config says the same."""
        labelled = {label: banks for label, banks in self.banks.items() if label}
        return {
            "model": facts["model"],
            "prompts": dict(self.source),
            "tasks": [{**attrs.asdict(task), "image": task.image and task.image.name} for task in self.tasks],
            "subjects": {name: attrs.asdict(subject) for name, subject in self.subjects.items()},
            "concepts": [_described(bank) for bank in self.banks[""]],
            "anchors_from": {label: _described(banks[0]) for label, banks in labelled.items()},
            "arms": [attrs.asdict(arm) for arm in arms],
            "lpips": lpips,
            "judges": {name: list(getattr(judge, "labels", None) or ()) or None for name, judge in self.judges.items()},
            "settings": facts["settings"],
        }


def _asked(
    prompts: str | Path | Sequence[Task],
    judges: Sequence[str] | Mapping[str, Judge],
    concepts: object,
    subjects: str | Path | Mapping[str, ConceptTerms] | None,
    anchors_from: Mapping[str, object] | None,
    seed: int,
) -> Question:
    if isinstance(prompts, (str, Path)):
        path = Path(prompts)
        tasks: Sequence[Task] = read_tasks(path, seed)
        source = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        if subjects is None and (path.parent / SUBJECTS).is_file():
            subjects = path.parent / SUBJECTS
    else:
        tasks = list(prompts)
        said = to_json([{**attrs.asdict(task), "image": task.image and str(task.image)} for task in tasks])
        source = {"file": "", "sha256": hashlib.sha256(said.encode()).hexdigest()}
    known = read_subjects(Path(subjects)) if isinstance(subjects, (str, Path)) else subjects or {}
    banks = [bank for bank, _ in resolve(concepts)]
    named = dict.fromkeys([*(bank.name for bank in banks), *(task.concept for task in tasks if task.concept)])
    others = {label: [resolve(concept)[0][0]] for label, concept in (anchors_from or {}).items()}
    if not isinstance(judges, Mapping):
        judges = {name: registry().make("judge", name).object for name in judges}
    return Question(source, tasks, {"": banks, **others}, subjects_of(list(named), known), judges)


def _described(bank: ConceptBank) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, tensor in sorted(bank.tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().float().numpy().tobytes())
    calibration = bank.calibration and attrs.asdict(bank.calibration)
    return {"name": bank.name, "sha256": digest.hexdigest(), "calibration": calibration, "provenance": bank.provenance}


def _begin(out: Path, config: Mapping[str, Any], overwrite: bool) -> None:
    """Make the folder, or go on in it if it holds the same evaluation.

    Raises:
        UVRError: it holds another one, or something else.
    """
    path = out / CONFIG
    asked = json.loads(to_json(dict(config)))
    if path.is_file() and not overwrite:
        try:
            existing = json.loads(path.read_text("utf-8"))
            same = {key: existing[key] for key in asked}
        except (ValueError, KeyError, TypeError) as error:
            raise UVRError(
                f"{path}: damaged, or of another version ({error}); pass --overwrite to begin anew"
            ) from error
        if differing := [key for key in asked if asked[key] != same[key]]:
            raise UVRError(
                f"{out}: holds an evaluation with other {' and '.join(differing)}; name another folder, or pass "
                "--overwrite to begin anew"
            )
        return
    output.check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for old in [*out.glob("rows-*.jsonl"), out / SUMMARY, out / "report.html"]:
            old.unlink(missing_ok=True)
        shutil.rmtree(out / "images", ignore_errors=True)
    elif any(out.glob("rows-*.jsonl")):
        raise UVRError(f"{out}: holds rows and no {CONFIG}; name another folder, or pass --overwrite to begin anew")
    facts = {"versions": output.versions(), "machine": platform.machine(), "git": output.commit()}
    write_whole(path, to_json({**asked, **facts}) + "\n")


def _finish(out: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The summary, written with the report once every row is there: by whichever process is the last."""
    from .pages import write_report

    summary = summarise(read_rows(out), config)
    if not summary["unfinished"]:
        write_whole(out / SUMMARY, to_json(summary) + "\n")
        write_report(out)
    return summary
