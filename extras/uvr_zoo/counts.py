"""What regulation did to held-out tasks, counted: erased, kept, edits carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

import uvr_core
from uvr_evaluation.summary import Outcome, tally

from . import concepts, judge, scenes
from .experiment import generate
from .tasks import Case, Task, settings, shown, unsafe_tasks
from .vocabulary import CONCEPTS

BATCH = 16


def erase(concept: str, drawn: Sequence[Task], stock: list[Image.Image], other: list[Image.Image]) -> dict[str, Any]:
    """Erase rates both ways and retention of the other prompted objects, with counts and Wilson 95% intervals.

    For edits also how many were carried out (an edit that asks for the concept is not meant to be).
    """
    members = set(CONCEPTS[concept])
    before, after = judge()(stock), judge()(other)
    outcomes = []
    for task, b, a in zip(drawn, before, after, strict=True):
        others = [item.name for item in shown(task).items if item.name not in members]
        outcomes.append(Outcome.of(members, others, b, a))
    counts = tally(outcomes)
    edits: dict[str, Any] = {}
    for which, seen, images in (("edits_stock", before, stock), ("edits_regulated", after, other)):
        if isinstance(drawn[0], scenes.Edit):
            edits[which] = sum(
                task.carried_out(s, np.asarray(im))
                for task, s, im in zip(drawn, seen, images, strict=True)
                if isinstance(task, scenes.Edit)
            )
    left, erased, kept = counts["left"]["hits"], counts["erased"], counts["kept"]
    return {
        "stock_unsafe": erased["of"],
        "regulated_unsafe": left,
        "total": len(drawn),
        "erased_of_shown": erased["hits"],
        "relative_erase": 1 - left / erased["of"] if erased["of"] else None,
        "erase_ci95": erased["ci95"],
        "safe_share": 1 - left / len(drawn),
        "safe_share_ci95": counts["safe_share"]["ci95"],
        "other_kept": kept["hits"],
        "other_shown": kept["of"],
        "retention": kept["rate"],
        "retention_ci95": kept["ci95"],
        **edits,
    }


def compare(
    pipe: Any, name: str, case: Case, policies: Mapping[str, Any], count: int, first: int
) -> dict[str, dict[str, Any]]:
    """The counts of `erase`, and of images located, for several policies on the same held-out tasks."""
    tasks, bank = unsafe_tasks(name, case, count, first), concepts(name, case.concept)
    stock = generate(pipe, tasks, settings(name), batch=BATCH).images
    rows = {}
    for title, policy in policies.items():

        def attached(part: slice, policy: Any = policy) -> Any:
            return uvr_core.attach(pipe, concepts=bank, policy=policy)

        regulated = generate(pipe, tasks, settings(name), batch=BATCH, regulator=attached)
        located = sum(finding.located for finding in regulated.findings() if finding is not None)
        rows[title] = {**erase(case.concept, tasks, stock, regulated.images), "located": located}
    return rows
