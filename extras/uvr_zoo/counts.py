"""Held-out tasks of the zoo put to `uvr_evaluation.evaluate`, and what regulation did to them in the demo's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from PIL import Image

from uvr_core import ConceptTerms
from uvr_core.files import read_picture
from uvr_evaluation import evaluate
from uvr_evaluation.metrics import mask_of
from uvr_evaluation.rows import Row, read_rows

from . import judge, scenes
from .prompt_sets import SEED, entry
from .tasks import Task, settings
from .vocabulary import CONCEPTS

BATCH = 16


@attrs.frozen(eq=False)
class Measured:
    """An evaluation of tasks that all ask for one concept, or for none.

    Attributes:
        folder: of the evaluation. summary: see `uvr_evaluation.summary.summarise`. rows: by arm, in the order of tasks.
    """

    tasks: Sequence[Task]
    folder: Path
    summary: Mapping[str, Any]
    rows: Mapping[str, Sequence[Row]]

    def figures(self, arm: str) -> dict[str, Any]:
        """Of an arm, see `summarise`."""
        (figures,) = self.summary["arms"][arm]["groups"].values()
        return dict(figures)

    def seen(self, arm: str = "stock") -> list[set[str]]:
        """The objects that the judge sees, a picture."""
        return [set(row["seen"]["zoo"]) for row in self.rows[arm]]

    def pictures(self, arm: str = "stock") -> list[Image.Image]:
        return [read_picture(self.folder / row["file"]) for row in self.rows[arm]]

    def located(self, arm: str) -> list[npt.NDArray[np.bool_] | None]:
        """(h, w) patches of the first concept, a picture; None: it was not located."""
        findings = [next(iter(row["findings"].values())) for row in self.rows[arm]]
        return [mask_of(finding["core"], finding["grid"]) if finding["located"] else None for finding in findings]

    def counts(self, arm: str) -> dict[str, Any]:
        """Erase rates both ways and retention of the other prompted objects, with counts and Wilson 95% intervals.

        For edits also how many were carried out (an edit that asks for the concept is not meant to be).
        """
        figures = self.figures(arm)
        left, erased, kept = figures["left"], figures["erased"], figures["kept"]
        edits: dict[str, int] = {}
        if isinstance(self.tasks[0], scenes.Edit):
            pairs = (("edits_stock", "stock"), ("edits_regulated", arm))
            edits = {name: self._carried_out(which, left["of"]) for name, which in pairs}
        return {
            "stock_unsafe": erased["of"],
            "regulated_unsafe": left["hits"],
            "total": left["of"],
            "erased_of_shown": erased["hits"],
            "relative_erase": figures["relative_reduction"],
            "erase_ci95": erased["ci95"],
            "safe_share": 1 - left["hits"] / left["of"],
            "safe_share_ci95": figures["safe_share"]["ci95"],
            "other_kept": kept["hits"],
            "other_shown": kept["of"],
            "retention": kept["rate"],
            "retention_ci95": kept["ci95"],
            **edits,
        }

    def _carried_out(self, arm: str, count: int) -> int:
        """How many of the first so many edits were: by labels, and of a background by the pixels."""
        results = zip(self.tasks[:count], self.seen(arm), self.pictures(arm), strict=False)
        return sum(
            task.carried_out(seen, np.asarray(picture))
            for task, seen, picture in results
            if isinstance(task, scenes.Edit)
        )


def measure(
    pipe: Any, name: str, tasks: Sequence[Task], out: Path, concept: str = "", *, seed: int = SEED, **asked: Any
) -> Measured:
    """Evaluate tasks that ask for a concept, or benign ones, under the zoo's settings; judged by its judge.

    Args:
        out: folder of the evaluation, begun anew, and of the sources of edits.
        asked: keyword arguments of `evaluate`: concepts, policies, arms, ...
    """
    members = CONCEPTS.get(concept, ())
    summary = evaluate(
        pipe,
        [entry(task, index, out / "sources", concept, seed=seed + index) for index, task in enumerate(tasks)],
        out,
        judges={"zoo": judge()},
        subjects={concept: ConceptTerms(concept, members, members)} if concept else None,
        call=settings(name),
        batch=BATCH,
        overwrite=True,
        facts={"model": f"zoo:{name}", "settings": {"call": settings(name), "batch": BATCH}},
        **asked,
    )
    rows: dict[str, list[Row]] = {}
    for row in read_rows(out):
        rows.setdefault(row["arm"], []).append(row)
    return Measured(tasks, out, summary, rows)
