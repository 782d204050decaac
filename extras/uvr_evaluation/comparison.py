"""`evaluate`: the same prompts under policies, controls and baselines, judged, resumable, with intervals."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from uvr_core import ConceptTerms, Judge, UVRError

from .arms import Arm
from .folder import begin, finish
from .metrics import Lpips
from .prompt_sets import Task
from .question import asked
from .runner import Evaluation

NEEDS = ("jinja2", "matplotlib", "skimage")


def evaluate(
    pipe: Any,
    prompts: str | Path | Sequence[Task],
    out: str | Path,
    *,
    judges: Sequence[str] | Mapping[str, Judge],
    concepts: object = None,
    subjects: str | Path | Mapping[str, ConceptTerms] | None = None,
    anchors_from: Mapping[str, object] | None = None,
    arms: Sequence[Arm] = (),
    call: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]] | None = None,
    seed: int = 0,
    batch: int = 4,
    adapter: str | None = None,
    size: tuple[int, int] | None = None,
    lpips: bool = False,
    limit: int | None = None,
    overwrite: bool = False,
    share: tuple[int, int] = (0, 1),
    facts: Mapping[str, Any] | None = None,
    running: Callable[[Any], AbstractContextManager[Any]] = nullcontext,
    progress: Callable[[str, int, int], None] | None = None,
    **columns: Any,
) -> dict[str, Any]:
    """Draw a prompt set under several arms, judge the pictures, and say what each arm costs and gains.

    One row per picture is on disk as it goes; called again it goes on where it was cut.

    Args:
        pipe: a diffusers pipeline, or a function without arguments that loads it when all else is checked.
        prompts: a prompt set (see `read_tasks`), "hub:NAME" of a published one (see `read_published`), or tasks. out:
            folder of config.json, rows-*.jsonl, images and, at the end, summary.json, report.html and pareto.png.
        judges: "NAME[=MODEL][:label,...]", or {name: judge}. The first counts; the first that points draws the masks.
        concepts: as `uvr_core.attach` takes them. subjects: what judges and prompts call them, or the file that says
            it; None: subjects.toml beside the prompt set. anchors_from: {label: concept} of further arms.
        columns: policies (else "selective"), detectors, baselines, controls, vary, without: `arms.plan`. arms: more.
        call: arguments of every call of the pipeline, or a function of it that gives them. seed: of a task without
            one, + its place. batch: images at a time. adapter: None: recognised. size: of sources, (width, height).
            lpips: measure LPIPS too. limit: no more tasks than that, the first.
        overwrite: begin anew where another evaluation lies. share: (this process, of how many). facts: {"model",
            "settings"} for config.json. running: a context around the pipeline's calls. progress: called with (what,
            images done, images in all).

    Returns:
        See `summarise`. While its `unfinished` is not 0, other processes have rows to write.

    Raises:
        UVRError: bad input, or another evaluation is in the folder.
    """
    require()
    question = asked(prompts, judges, concepts, subjects, anchors_from, seed, limit)
    every = question.columns(arms, **columns)
    said = {"model": type(pipe).__name__, "settings": {"call": repr(call), "seed": seed, "batch": batch}}
    config = question.config(every, lpips, facts or said)
    begin(Path(out), config, overwrite, share[1])
    if inspect.isfunction(pipe):
        pipe = pipe()
    arguments, metric = call(pipe) if callable(call) else call or {}, Lpips() if lpips else None
    with running(pipe):
        Evaluation(pipe, arguments, question, every, Path(out), batch, adapter, metric, size).run(*share, progress)
    return finish(Path(out), config)


def require() -> None:
    """Raise UVRError, with the remedy, unless what reports are made with is installed. Imports none of it."""
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise UVRError(f"evaluations need {' and '.join(missing)}, not installed here: pip install 'uvr-core[eval]'")
