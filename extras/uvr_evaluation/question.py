"""What an evaluation asks, read and checked before any model is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from uvr_core import ConceptBank, ConceptTerms, Judge, UVRError
from uvr_core.cli.judges import JudgeSpec, threshold_of
from uvr_core.concepts import resolve

from .arms import Arm, plan
from .prompt_sets import Task, read_tasks
from .published import is_published, read_published, terms_of
from .terms import SUBJECTS, check_labels, read_subjects, subjects_of


@attrs.frozen(eq=False)
class Question:
    """What an evaluation asks: of which tasks, with which concepts, judged by whom.

    Attributes:
        source: of the prompt set: {"file", "sha256"}.
        banks: {label: banks}; "" are the run's own.
        subjects: by concept name, in the order of the banks.
        judges: by name.
    """

    source: Mapping[str, str]
    tasks: Sequence[Task]
    banks: Mapping[str, Sequence[ConceptBank]]
    subjects: Mapping[str, ConceptTerms]
    judges: Mapping[str, Judge]

    def columns(self, arms: Sequence[Arm], policies: Sequence[str] = (), **options: Any) -> list[Arm]:
        """Every arm, stock first; checked against what there is."""
        policies = tuple(policies) or (("selective",) if self.banks[""] and not arms else ())
        labels = [label for label in self.banks if label] if policies else []
        columns = [*plan(policies, banks=labels, **options), *arms]
        if any(arm.kind == "policy" and not self.banks.get(arm.banks) for arm in columns):
            raise UVRError("--policy needs a --concept to regulate")
        check_labels(self.tasks, self.subjects, self.judges)
        return columns

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
            "thresholds": {name: threshold_of(judge) for name, judge in self.judges.items()},
            "settings": facts["settings"],
        }


def asked(
    prompts: str | Path | Sequence[Task],
    judges: Sequence[str] | Mapping[str, Judge],
    concepts: object,
    subjects: str | Path | Mapping[str, ConceptTerms] | None,
    anchors_from: Mapping[str, object] | None,
    seed: int,
    limit: int | None = None,
) -> Question:
    tasks: Sequence[Task]
    if is_published(prompts):
        tasks, source = read_published(str(prompts), seed, limit)
    elif isinstance(prompts, (str, Path)):
        path = Path(prompts)
        tasks = read_tasks(path, seed)[:limit]
        source = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        if subjects is None and (path.parent / SUBJECTS).is_file():
            subjects = path.parent / SUBJECTS
    else:
        tasks, source = (
            list(prompts)[:limit],
            {"file": "", "sha256": hashlib.sha256(repr(list(prompts)).encode()).hexdigest()},
        )
    known = read_subjects(Path(subjects)) if isinstance(subjects, (str, Path)) else subjects or {}
    banks = [bank for bank, _ in resolve(concepts)]
    named = dict.fromkeys([*(bank.name for bank in banks), *(task.concept for task in tasks if task.concept)])
    if is_published(prompts):
        known = {**terms_of(named), **known}
    others = {label: [resolve(concept)[0][0]] for label, concept in (anchors_from or {}).items()}
    if not isinstance(judges, Mapping):
        judges = judges_of(judges)
    return Question(source, tasks, {"": banks, **others}, subjects_of(list(named), known), judges)


def judges_of(texts: Sequence[str], **options: Any) -> dict[str, Judge]:
    """{name: judge} of NAME[=MODEL][:label,label], each tried; `options` go to every factory."""
    specs = [JudgeSpec.of(text) for text in texts]
    judges: dict[str, Judge] = {}
    for spec in specs:
        if spec.name in judges:
            raise UVRError(f"judge {spec.name!r} is named twice; from Python judges can have names of yours")
        judges[spec.name] = spec.asked(**options)
    return judges


def _described(bank: ConceptBank) -> dict[str, Any]:
    calibration = bank.calibration and attrs.asdict(bank.calibration)
    return {"name": bank.name, "sha256": bank.digest, "calibration": calibration, "provenance": bank.provenance}
