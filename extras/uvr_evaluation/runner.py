"""Run the arms over the tasks, batch by batch, and write one row per image and arm as it goes.

A batch is made under every arm with the same seeds and the same neighbours, stock first. What is on disk is not made
again: a run that was cut goes on where it stopped. Several processes share the batches and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from uvr_core import Report, Request, UnsupportedRuntime, UVRError, attach
from uvr_core.files import read_picture
from uvr_core.fit.scores import auroc_of
from uvr_core.plugins import registry
from uvr_core.sampling import Sampling

from .arms import Arm, attached, scattered
from .metrics import Lpips, likeness, mask_of, overlap, patches_of
from .prompt_sets import Task
from .question import Question
from .rows import Row, RowFile, read_rows

Mask = npt.NDArray[np.bool_]


@attrs.frozen(eq=False)
class Evaluation:
    """What is compared, on what.

    Attributes:
        pipe: the pipeline; call: keyword arguments of every call.
        question: tasks, banks, subjects and judges; the first judge that can point (`locate`) draws the true masks.
        arms: stock first.
        folder: where rows and pictures go.
        batch: images at a time.
        adapter: name, or None: recognised.
        lpips: the metric, or None: not measured.
        size: (width, height) that source pictures are brought to, or None.
    """

    pipe: Any
    call: Mapping[str, Any]
    question: Question
    arms: Sequence[Arm]
    folder: Path
    batch: int = 4
    adapter: str | None = None
    lpips: Lpips | None = None
    size: tuple[int, int] | None = None
    _grids: dict[tuple[int, int], tuple[int, int]] = attrs.field(factory=dict, init=False)  # by picture size

    def batches(self) -> list[Sequence[Task]]:
        """The tasks in batches; the same however many processes there are, and wherever a run stopped."""
        return [self.question.tasks[i : i + self.batch] for i in range(0, len(self.question.tasks), self.batch)]

    def run(
        self, process: int = 0, processes: int = 1, progress: Callable[[str, int, int], None] | None = None
    ) -> None:
        """Make and judge what is not on disk yet, of every `processes`-th batch from the `process`-th.

        Args:
            progress: called with (what, images done, images in all), those on disk included.
        """
        with RowFile(self.folder, process) as file:
            existing: dict[tuple[int, str], Row] = {(row["task"], row["arm"]): row for row in read_rows(self.folder)}
            share = self.batches()[process::processes]
            total = sum(len(arm.takes(tasks)) for tasks in share for arm in self.arms)
            done, warm = 0, False
            for batch in share:
                stock: list[Row] = []
                for arm in self.arms:
                    tasks = arm.takes(batch)
                    rows = [existing[t.index, arm.name] for t in tasks if (t.index, arm.name) in existing]
                    if len(rows) < len(tasks):
                        if not warm:  # the first call of a process is slow
                            self._learn_grid(batch)
                            warm = True
                        rows = self._rows(arm, tasks, stock[: len(tasks)])
                        file.append(rows)
                    if arm.kind == "stock":
                        stock = rows
                    done += len(tasks)
                    if progress is not None:
                        progress("evaluating", done, total)

    def _rows(self, arm: Arm, tasks: Sequence[Task], stock: Sequence[Row]) -> list[Row]:
        """Generate one batch under one arm, judge it, keep its pictures."""
        truth = self._masks_on_disk(stock)
        start = time.perf_counter()
        try:
            pictures, report = self._generate(arm, tasks, self._masks_for(arm, tasks, truth))
        except UnsupportedRuntime as error:
            if arm.kind != "baseline":
                raise
            return [
                {"task": t.index, "arm": arm.name, "group": t.group, "concept": t.concept, "unsupported": str(error)}
                for t in tasks
            ]
        seconds = (time.perf_counter() - start) / len(tasks)
        if len(pictures) != len(tasks):
            raise UVRError(f"arm {arm.name!r} gave {len(pictures)} pictures for {len(tasks)} prompts")
        seen = self._judged(pictures)
        if arm.kind == "stock":
            truth = self._locate(tasks, pictures)
        rows = []
        for index, (task, picture) in enumerate(zip(tasks, pictures, strict=True)):
            row: Row = {
                "task": task.index,
                "arm": arm.name,
                "group": task.group,
                "concept": task.concept,
                "seed": task.seed,
                "file": self._keep(picture, arm, task),
                "refused": picture is None,
                "seen": {name: each[index] for name, each in seen.items()},
                "seconds": seconds,
                "batch": tasks[0].index,
            }
            mask = truth[index] if truth is not None else None
            if arm.kind == "stock":
                row["truth"] = None if mask is None else {"patches": patches_of(mask), "grid": list(mask.shape)}
            elif picture is not None:
                row |= self._compare(picture, stock[index], mask)
            if report is not None:
                row["findings"] = findings(arm, report, index, task, mask)
            rows.append(row)
        return rows

    def _keep(self, picture: Any, arm: Arm, task: Task) -> str | None:
        """Where the picture lies in the result folder; None: it was withheld."""
        if picture is None:
            return None
        file = f"images/{arm.folder}/{task.index:05d}.png"
        (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
        picture.save(self.folder / file)
        return file

    def _masks_for(self, arm: Arm, tasks: Sequence[Task], truth: Sequence[Mask | None] | None) -> Mask | None:
        """The masks that a control regulates; None: what is located."""
        if arm.where == "located":
            return None
        if truth is None or any(mask is None for mask in truth):
            raise UVRError(f"arm {arm.name!r} needs a judge that can point (`locate`), such as 'zoo'")
        masks = np.stack([mask for mask in truth if mask is not None])
        return scattered(masks, tasks, arm.seed) if arm.where == "random" else masks

    def _generate(self, arm: Arm, tasks: Sequence[Task], masks: Mask | None) -> tuple[list[Any], Report | None]:
        sampling, banks = self._sampling(tasks), self.question.banks.get(arm.banks, ())
        if arm.kind == "baseline":
            asked, by_name = self.question, {bank.name: bank for bank in banks}
            terms, known = tuple(asked.subjects.values()), tuple(by_name.get(name) for name in asked.subjects)
            request = Request(self.pipe, sampling.arguments(slice(0, len(tasks))), terms, known, asked.judges)
            return list(registry().make("baseline", arm.plugin).object.generate(request)), None
        around = None
        if arm.kind == "policy":
            around = lambda batch: attached(arm, self.pipe, banks, masks, self.adapter)  # noqa: E731
        (drawn,) = sampling.draw(self.pipe, around)
        return drawn.images, drawn.report

    def _sampling(self, tasks: Sequence[Task]) -> Sampling:
        """One batch; the source pictures come with it where the tasks have them."""
        sources = [read_picture(task.image, self.size) for task in tasks if task.image is not None]
        prompts, seeds = [task.prompt for task in tasks], [task.seed for task in tasks]
        return Sampling(prompts, seeds, {"image": sources or None}, self.call, len(tasks))

    def _judged(self, pictures: Sequence[Any]) -> dict[str, list[dict[str, float]]]:
        """{judge: [{label: score}]}; nothing is seen in a picture that was refused."""
        handed_out = [i for i, picture in enumerate(pictures) if picture is not None]
        seen: dict[str, list[dict[str, float]]] = {}
        for name, judge in self.question.judges.items():
            results = judge([pictures[i] for i in handed_out]) if handed_out else []
            each: list[dict[str, float]] = [{} for _ in pictures]
            for i, result in zip(handed_out, results, strict=True):
                each[i] = {label: float(score) for label, score in result.items()}
            seen[name] = each
        return seen

    def _learn_grid(self, tasks: Sequence[Task]) -> None:
        """Note how many patches a picture of this batch has: a run under observation, which is a warm-up too."""
        (drawn,) = self._sampling(tasks).draw(self.pipe, lambda batch: attach(self.pipe, self.adapter))
        if drawn.grid is not None:
            self._grids[drawn.images[0].size] = drawn.grid

    def _locate(self, tasks: Sequence[Task], pictures: Sequence[Any]) -> list[Mask | None] | None:
        """True masks: patches of the stock pictures in which a judge sees the task's concept; None: no judge points."""
        for judge in self.question.judges.values():
            if callable(locate := getattr(judge, "locate", None)):
                break
        else:
            return None
        masks: list[Mask | None] = []
        for task, picture in zip(tasks, pictures, strict=True):
            if picture.size not in self._grids:
                self._learn_grid(tasks)
            grid = self._grids[picture.size]
            labels = self.question.subjects[task.concept].labels if task.concept in self.question.subjects else ()
            seen = np.asarray(locate([picture], list(labels), grid)) if labels else np.zeros((1, *grid), bool)
            masks.append(seen[0].astype(bool))
        return masks

    def _masks_on_disk(self, stock: Sequence[Row]) -> list[Mask | None] | None:
        if not stock:
            return None
        return [mask_of(row["truth"]["patches"], row["truth"]["grid"]) if row.get("truth") else None for row in stock]

    def _compare(self, picture: Any, stock: Row, mask: Mask | None) -> dict[str, Any]:
        """Against the stock twin: whether it is the same, and how alike outside the true mask."""
        one, twin = np.asarray(picture.convert("RGB")), np.asarray(read_picture(self.folder / stock["file"]))
        if one.shape != twin.shape:
            return {"identical": False}
        row: dict[str, Any] = {"identical": bool(np.array_equal(one, twin)), **likeness(one, twin, mask)}
        if self.lpips is not None:
            row["lpips"] = self.lpips(one, twin)
        return row


def findings(arm: Arm, report: Report, sample: int, task: Task, truth: Mask | None) -> dict[str, Any]:
    """{concept: what the report says of one image}, with its overlap with the truth for the task's own concept.

    The mask that a control is given is the task's concept's, whatever bank it runs under.
    """
    entries: dict[str, Any] = {}
    for finding in report.findings:
        if finding.sample != sample:
            continue
        entry: dict[str, Any] = {
            "located": finding.located,
            "score": finding.score,
            "first_step": finding.first_step,
            "patches": finding.patches,
            "steps_regulated": finding.steps_regulated,
            "from_source": finding.from_source,
            "core": patches_of(finding.core),
            "grid": list(finding.core.shape),
        }
        name = task.concept if arm.where != "located" and task.concept else finding.concept
        if name == task.concept and truth is not None and truth.shape == finding.core.shape:
            entry["iou"] = overlap(finding.core, truth) if truth.any() else None
            if finding.heat is not None:
                entry["auroc"] = auroc_of(finding.heat.ravel(), truth.ravel())
        entries[name] = entry
    return entries
