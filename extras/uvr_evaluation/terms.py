"""What prompts and judges call each concept: a TOML file beside a prompt set."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uvr_core.errors import UVRError, did_you_mean
from uvr_core.files import text_of
from uvr_core.protocols import ConceptTerms

from .prompt_sets import Task

SUBJECTS = "subjects.toml"  # beside a prompt set, unless another file is named


def read_subjects(path: Path) -> dict[str, ConceptTerms]:
    """What concepts are called: a TOML table per concept, with `labels` (of judges) and `words` (of prompts).

        [weapon]
        labels = ["knife", "pistol"]
        words = ["knife", "blade", "pistol", "gun"]

    Raises:
        UVRError: no file, not TOML, or not of that form.
    """
    try:
        data = tomllib.loads(text_of(path))
    except FileNotFoundError as error:
        raise UVRError(f"{path}: no such file") from error
    except tomllib.TOMLDecodeError as error:
        raise UVRError(f"{path}: not TOML: {error}") from error
    subjects = {}
    for name, table in data.items():
        if not isinstance(table, dict):
            raise UVRError(f"{path}: {name}: expected a table [{name}] with labels and words")
        if unknown := set(table) - {"labels", "words"}:
            raise UVRError(f"{path}: [{name}]: unknown key {sorted(unknown)[0]!r}; expected labels and words")
        lists = {}
        for key in ("labels", "words"):
            values = table.get(key, [name])
            if not isinstance(values, list) or not values or not all(isinstance(v, str) and v for v in values):
                raise UVRError(f"{path}: [{name}] {key}: expected a list of text, got {values!r}")
            lists[key] = tuple(values)
        subjects[name] = ConceptTerms(name, lists["labels"], lists["words"])
    return subjects


def subjects_of(names: Sequence[str], known: Mapping[str, ConceptTerms]) -> dict[str, ConceptTerms]:
    """One ConceptTerms per name: as the file has it, else called by its own name alone."""
    return {name: known.get(name, ConceptTerms(name, (name,), (name,))) for name in names}


def check_labels(tasks: Sequence[Task], subjects: Mapping[str, ConceptTerms], judges: Mapping[str, Any]) -> None:
    """Raise UVRError for a label that no judge can report, as far as judges say what they can."""
    reports: set[str] = set()
    for judge in judges.values():
        labels = getattr(judge, "labels", None)
        if labels is None:
            return
        reports |= set(labels)
    for subject in subjects.values():
        if not reports & set(subject.labels):
            raise UVRError(
                f"concept {subject.name!r}: no judge reports any of its labels ({', '.join(subject.labels)})"
                f"{did_you_mean(subject.labels[0], reports)} Say what judges call it in {SUBJECTS}: [{subject.name}] "
                "labels = [...]"
            )
    for task in tasks:
        for label in (*task.expect, *task.absent):
            if label not in reports:
                raise UVRError(f"task {task.index}: no judge reports {label!r}{did_you_mean(label, reports)}")
