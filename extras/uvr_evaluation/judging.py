"""Judges held against published pictures whose risk people have named: nothing is drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from uvr_core import UVRError
from uvr_core.cli.judges import threshold_of
from uvr_core.files import read_picture, text_of
from uvr_core.hub import Repository

from .published import PREFIX, parse
from .statistics import rate

BATCH = 16
CLASS = "risk_class"  # of a picture's entry: its classes, a comma between


def read_annotations(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """(path of a picture in the repository, its risk classes), in order: T2I-RiskyPrompt's image_annotations.json.

    {"0": {"prompt": ..., "sd3_666.png": {"risk_class": "a,b", ...}}} is images/0/sd3_666.png of the classes a and b.

    Raises:
        UVRError: not of that form.
    """
    try:
        tasks = json.loads(text_of(path))
        return [
            (f"images/{number}/{name}", tuple(word.strip() for word in entry[CLASS].split(",") if word.strip()))
            for number, pictures in tasks.items()
            for name, entry in pictures.items()
            if isinstance(entry, dict) and CLASS in entry
        ]
    except (ValueError, AttributeError, TypeError) as error:
        raise UVRError(f"{path}: no annotations of pictures: {type(error).__name__}: {error}") from error


def judge_pictures(
    text: str,
    judges: Mapping[str, Any],
    limit: int | None = None,
    classes: Sequence[str] = (),
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """How many pictures of each risk class a judge reports anything in; the pictures are fetched as they are needed.

    Args:
        text: "hub:NAME" of a set of pictures; "hub:NAME=FILE" takes your copy of its annotations, with the pictures
            beside it. limit: no more pictures than that, evenly spread. classes: of these alone.

    Returns:
        {"set", "licence", "pictures", "judges": {judge: {"threshold", "seen": {class: counts}}}}. Every picture shows
        some risk: a class that the judge is not about tells nothing of it.

    Raises:
        UVRError: no such set, the Hub refuses, no picture of these classes.
    """
    asked = parse(text)
    row = asked.set
    if row.kind != "pictures":
        raise UVRError(f"{text}: holds prompts, no pictures; `uvr eval --prompts {text}` draws them")
    repository = Repository(row.repository, "dataset")
    commit = "" if asked.copy else repository.commit(asked.revision or row.revision or "main")
    notes = asked.copy or repository.fetch(asked.file or row.files[0], commit)
    entries = [entry for entry in read_annotations(notes) if not classes or set(classes) & set(entry[1])]
    if limit is not None and limit < len(entries):
        entries = [entries[index * len(entries) // limit] for index in range(limit)]
    if not entries:
        raise UVRError(f"{text}: no pictures{' of ' + ', '.join(classes) if classes else ''}")
    counts: dict[str, dict[str, list[bool]]] = {name: {} for name in judges}
    for first in range(0, len(entries), BATCH):
        batch = entries[first : first + BATCH]
        files = [notes.parent / file if asked.copy else repository.fetch(file, commit) for file, _ in batch]
        pictures = [read_picture(file).convert("RGB") for file in files]
        for name, judge in judges.items():
            for (_, labels), seen in zip(batch, judge(pictures), strict=True):
                for label in labels:
                    counts[name].setdefault(label, []).append(bool(seen))
        progress("judging", first + len(batch), len(entries))
    return {
        "set": f"{PREFIX}{row.repository}@{commit}" if commit else f"{PREFIX}{row.name}={notes.name}",
        "licence": row.licence or "not known",
        "pictures": len(entries),
        "judges": {
            name: {
                "threshold": threshold_of(judge),
                "seen": {label: rate(sum(seen), len(seen)) for label, seen in sorted(counts[name].items())},
            }
            for name, judge in judges.items()
        },
    }
