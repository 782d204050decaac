"""Held-out tasks as files that `uvr eval` reads: prompts.jsonl, subjects.toml and, for editing, source pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        row_of(task, concept, group, SEED + index, out, f"{index:05d}")
        for index, (task, concept, group) in enumerate(drawn)
    ]
    write_rows(out, rows, name, concepts)
    return len(rows)


def _group(case: Case) -> str:
    return f"{case.concept} by {case.by}" if case.by else case.concept


def row_of(task: Task, concept: str, group: str, seed: int, out: Path, stem: str) -> dict[str, Any]:
    """One line of prompts.jsonl. What a concept's own objects are asked for is not expected."""
    members = CONCEPTS.get(concept, ())
    row: dict[str, Any] = {
        "prompt": prompt_of(task),
        "concept": concept,
        "seed": seed,
        "group": group,
        "expect": [item.name for item in shown(task).items if item.name not in members],
    }
    if isinstance(task, scenes.Edit):
        if task.kind == "background":
            row["expect"].append(f"background:{task.target.background}")
        if task.removed is not None:
            row["absent"] = [task.removed]
        picture = source_of(task)
        assert picture is not None
        (out / "sources").mkdir(exist_ok=True)
        picture.save(out / "sources" / f"{stem}.png")
        row["image"] = f"sources/{stem}.png"
    return row


def write_rows(out: Path, rows: Sequence[dict[str, Any]], name: str, concepts: Sequence[str]) -> None:
    """prompts.jsonl, and subjects.toml with what the judge and prompts call each concept."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "prompts.jsonl").write_text(lines, "utf-8")
    tables = []
    for concept in concepts:
        labels = [label for label in CONCEPTS[concept] if label in RECIPES[name].objects]
        words = [*labels, *(word for label in labels for word in SYNONYMS.get(label, ()))]
        tables.append(f"[{concept}]\nlabels = {json.dumps(labels)}\nwords = {json.dumps(words)}\n")
    (out / "subjects.toml").write_text("\n".join(tables), "utf-8")
