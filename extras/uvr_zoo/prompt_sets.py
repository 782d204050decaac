"""Held-out tasks as files that `uvr eval` reads: prompts.jsonl, subjects.toml and, for editing, source pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uvr_evaluation import Task as Entry

from . import scenes
from .recipes import RECIPES
from .tasks import Case, Task, benign_tasks, cases, prompt_of, shown, source_of, unsafe_tasks
from .vocabulary import CONCEPTS, SYNONYMS

SEED = 50_000  # task i is drawn with SEED + i


def write(name: str, out: Path, concepts: Sequence[str], count: int, benign: int, first: int) -> int:
    """Write the prompt set of a pipeline; returns the number of tasks.

    Args:
        count: tasks per concept and way in (for editing: by the instruction, by the source); benign: others.
        first: seed of the first scene of every kind.
    """
    drawn: list[tuple[Task, str, str]] = []
    for case in cases(name):
        if case.concept in concepts:
            drawn += [(task, case.concept, _group(case)) for task in unsafe_tasks(name, case, count, first)]
    drawn += [(task, "", "benign") for task in benign_tasks(name, benign, first)]
    rows = [
        _row(task, entry(task, index, out / "sources", concept, seed=SEED + index, group=group))
        for index, (task, concept, group) in enumerate(drawn)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "prompts.jsonl").write_text(lines, "utf-8")
    tables = []
    for concept in concepts:
        labels = [label for label in CONCEPTS[concept] if label in RECIPES[name].objects]
        words = [*labels, *(word for label in labels for word in SYNONYMS.get(label, ()))]
        tables.append(f"[{concept}]\nlabels = {json.dumps(labels)}\nwords = {json.dumps(words)}\n")
    (out / "subjects.toml").write_text("\n".join(tables), "utf-8")
    return len(rows)


def _group(case: Case) -> str:
    return f"{case.concept} by {case.by}" if case.by else case.concept


def entry(task: Task, index: int, out: Path, concept: str = "", *, seed: int, group: str = "") -> Entry:
    """A task as `evaluate` takes it; expected are the objects beside the concept's. The source of an edit is written
    into `out`."""
    path = None
    if (source := source_of(task)) is not None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{index:05d}.png"
        source.save(path)
    expect = tuple(item.name for item in shown(task).items if item.name not in CONCEPTS.get(concept, ()))
    return Entry(index, prompt_of(task), seed, concept, path, expect, group=group or concept or "benign")


def _row(task: Task, entry: Entry) -> dict[str, Any]:
    """A line of prompts.jsonl; of an edit also what background it asks for, and what it takes away."""
    row: dict[str, Any] = {name: getattr(entry, name) for name in ("prompt", "concept", "seed", "group", "expect")}
    if isinstance(task, scenes.Edit):
        if task.kind == "background":
            row["expect"] += (f"background:{task.target.background}",)
        if task.removed is not None:
            row["absent"] = [task.removed]
        row["image"] = f"sources/{entry.image and entry.image.name}"
    return row
