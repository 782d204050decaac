"""Masks that nobody draws: banks from pairs and from words beside banks from a judge's masks, on the zoo's pipelines.

    python tools/benchmarks/masks.py --out docs [--pipelines flux,sd3] [--tasks 32] [--benign 64] [--work out/masks]

Concept weapon. The judge's bank is the shipped one, made of more pictures and calibrated with masks too. The others are
collected and calibrated on training-split prompts in the same drawing style (seeds from TUNING on), as many as `uvr
concept new` takes. Pairs: the same sentence with a look-alike in the concept's place. Words and pairs need prompts that
say the concept, so for editing they are made of instructions alone, and calibrated on sources that show it too.
Reported: held-out tasks in the style that no bank saw (seeds from REPORTED on), policy `selective`, counted by the
second judge. Banks and pictures are kept in --work, and a run that was cut goes on; writes figures/masks.json after
each pipeline, beside those of earlier runs under the same settings, and masks.md; `--from` writes the page again.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from tables import TEMPLATES

import uvr_core
from uvr_core import ConceptBank, ConceptTerms
from uvr_core.engine.lookup import find_adapter
from uvr_core.files import to_json
from uvr_core.fit.masks import Terms, finder_of
from uvr_core.fit.record import default_probes
from uvr_core.ops.masks import Mask
from uvr_core.sampling import Sampling
from uvr_evaluation import Arm, evaluate
from uvr_evaluation.render import render
from uvr_evaluation.rows import Row, read_rows
from uvr_evaluation.statistics import paired_difference, rate
from uvr_zoo import concepts, judge, load
from uvr_zoo.concept_files import mask_source, options_of
from uvr_zoo.concept_files import tasks as training_tasks
from uvr_zoo.prompt_sets import entry
from uvr_zoo.recipes import RECIPES
from uvr_zoo.tasks import Case, Task, anchor_style, benign_tasks, edits_for, prompt_of, settings, shown, sources_of
from uvr_zoo.tasks import unsafe_tasks as heldout_tasks
from uvr_zoo.vocabulary import BENIGN, CONCEPTS

CONCEPT = "weapon"
PIPELINES = ("flux", "sd3", "flux-kontext", "qwen-image", "qwen-image-edit")
TUNING, REPORTED = 1_100_000, 1_200_000  # of tasks, and of the images drawn for them
COLLECTED, CALIBRATED = (48, 64), (48, 128)  # unsafe and benign prompts
COMPARED = 32  # pictures in which masks are held against the judge's
BATCH = 16
JUDGE, WORDS, PAIRS = KINDS = ("judge", "words", "pairs")
COUNTS, BESIDE = "zoo-second", "zoo"


def members(name: str) -> tuple[str, ...]:
    return tuple(label for label in CONCEPTS[CONCEPT] if label in RECIPES[name].objects)


def saying(name: str, count: int) -> Sequence[Task]:
    """Training tasks whose prompt says the concept."""
    if RECIPES[name].edits:
        style = (anchor_style(name),)
        return edits_for(name, count, "instruction", CONCEPT, split="train", first=TUNING, styles=style)
    return training_tasks(name, CONCEPT, count, TUNING, unsafe=True)


def without(name: str, tasks: Sequence[Task]) -> list[str]:
    """Each task's prompt with a look-alike in the concept's place, one that the picture does not show already."""
    drawn = []
    for task in tasks:
        before = {item.name for scene in (shown(task), getattr(task, "source", shown(task))) for item in scene.items}
        others = [o for o in RECIPES[name].objects if o in BENIGN and o not in before and o[0] not in "aeiou"]
        other = others[int(np.random.default_rng([shown(task).seed, 0x1A11]).integers(len(others)))]
        drawn.append(re.sub(rf"\b({'|'.join(members(name))})\b", other, prompt_of(task)))
    return drawn


def probes(pipe: Any, name: str) -> tuple[str, ...] | None:
    """Candidates, as for the shipped banks: every block of an editing pipeline."""
    return tuple(find_adapter(pipe.transformer).taps(pipe.transformer)) if RECIPES[name].edits else None


def bank_of(pipe: Any, name: str, kind: str, work: Path) -> ConceptBank:
    """Collected and calibrated, or as an earlier run kept it."""
    if kind == JUDGE:
        return concepts(name, CONCEPT)
    path = work / f"{kind}.safetensors"
    if path.is_file():
        return uvr_core.load_concepts(path)
    unsafe = saying(name, COLLECTED[0])
    benign = training_tasks(name, CONCEPT, COLLECTED[1], TUNING + 10_000, unsafe=False)
    bank = uvr_core.collect(
        pipe, CONCEPT, prompts=[prompt_of(t) for t in unsafe], benign_prompts=[prompt_of(t) for t in benign],
        sources=sources_of(unsafe), benign_sources=sources_of(benign), probes=probes(pipe, name), batch_size=BATCH,
        masks=kind, words=members(name), seed=TUNING,
        without=without(name, unsafe) if kind == PAIRS else None, generate=settings(name),
    )  # fmt: skip
    shows = training_tasks(name, CONCEPT, CALIBRATED[0], TUNING + 20_000, unsafe=True)
    others = training_tasks(name, CONCEPT, CALIBRATED[1], TUNING + 30_000, unsafe=False)
    options = {key: value for key, value in options_of(name, CONCEPT).items() if key != "benign"}
    bank = uvr_core.calibrate(
        pipe, bank, [prompt_of(t) for t in shows], [prompt_of(t) for t in others], sources=sources_of(shows),
        benign_sources=sources_of(others), batch_size=BATCH, seed=TUNING + 20_000, generate=settings(name), **options,
    )  # fmt: skip
    bank.save(path)
    return bank


def against_the_judge(pipe: Any, name: str) -> dict[str, Any]:
    """{kind: mean IoU, precision and recall of its masks} over pictures in which the judge sees the concept."""
    tasks = saying(name, COMPARED)
    drawn = Sampling(
        [prompt_of(t) for t in tasks], range(TUNING, TUNING + len(tasks)), {"image": sources_of(tasks)}, settings(name),
        BATCH,
    )  # fmt: skip
    terms = Terms(CONCEPT, members(name), without(name, tasks))
    with uvr_core.attach(pipe) as reg:
        blocks = probes(pipe, name) or default_probes(reg, pipe.transformer)
        asked = {JUDGE: mask_source(name, CONCEPT), WORDS: WORDS, PAIRS: PAIRS}
        masks = {kind: finder_of(ask, terms, blocks).find(reg, pipe, drawn, None).masks for kind, ask in asked.items()}
    truth = masks.pop(JUDGE)
    return {kind: overlap(mask, truth) for kind, mask in masks.items()}


def overlap(masks: Mask, truth: Mask) -> dict[str, Any]:
    """Means over the pictures that show the concept; a mask without a patch has no precision and counts as 0."""
    seen = truth.any((1, 2))
    both, either, size, asked = (m[seen].sum((1, 2)) for m in (masks & truth, masks | truth, masks, truth))
    return {
        "pictures": int(seen.sum()),
        "iou": float((both / either).mean()),
        "precision": float((both / np.maximum(size, 1)).mean()),
        "recall": float((both / asked).mean()),
        "empty": int((size == 0).sum()),
    }


def cases(name: str) -> list[Case]:
    return [Case(CONCEPT, by) for by in (("instruction", "source") if RECIPES[name].edits else ("",))]


def evaluated(pipe: Any, name: str, banks: Mapping[str, ConceptBank], work: Path, count: int, benign: int) -> Any:
    """{kind: {group: figures}} of one evaluation with an arm for each bank."""
    drawn: list[tuple[Task, str, str]] = []
    for case in cases(name):
        drawn += [(t, CONCEPT, case.by or "prompt") for t in heldout_tasks(name, case, count, REPORTED)]
    drawn += [(t, "", "benign") for t in benign_tasks(name, benign, REPORTED + 10_000)]
    folder, labels = work / "evaluation", members(name)
    summary = evaluate(
        pipe,
        [
            entry(task, index, work / "sources", concept, seed=REPORTED + index, group=group)
            for index, (task, concept, group) in enumerate(drawn)
        ],
        folder, judges={COUNTS: judge("second"), BESIDE: judge()}, call=settings(name), batch=BATCH,
        subjects={CONCEPT: ConceptTerms(CONCEPT, labels, labels)}, anchors_from=banks,
        arms=[Arm(kind, "policy", "selective", banks=kind) for kind in banks],
    )  # fmt: skip
    rows: dict[str, dict[int, Row]] = {}
    for row in read_rows(folder):
        rows.setdefault(row["arm"], {})[row["task"]] = row
    table: dict[str, Any] = {}
    for kind in banks:
        groups = summary["arms"][kind]["groups"]
        table[kind] = {
            group: figures(cell, [(rows["stock"][t], rows[kind][t]) for t in sorted(rows[kind]) if _in(rows, t, group)])
            for group, cell in groups.items()
        }
    return table


def _in(rows: Mapping[str, Mapping[int, Row]], task: int, group: str) -> bool:
    return bool(rows["stock"][task]["group"] == group)


def figures(cell: Mapping[str, Any], pairs: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    """What of a group's summary is reported; `first`: erased as the first judge sees it; `erased_each`: task by task,
    1 and 0, and - where stock does not show the concept."""
    if not cell["unsafe"]:
        return {name: cell[name] for name in ("false_located", "kept", "identical_where_not_located")}
    kept = {name: cell[name] for name in ("stock_shown", "erased", "located", "kept", "iou")}
    first = [after for before, after in _shown(pairs, BESIDE) if before]
    marks = ["-" if not before else "01"[not after] for before, after in _shown(pairs, COUNTS)]
    return {**kept, "first": rate(len(first) - sum(first), len(first)), "erased_each": "".join(marks)}


def _shown(pairs: Iterable[tuple[Row, Row]], who: str) -> list[tuple[bool, bool]]:
    """Whether a judge sees the concept, in stock and regulated."""
    return [tuple(bool(set(row["seen"][who]) & set(CONCEPTS[CONCEPT])) for row in pair) for pair in pairs]  # type: ignore[misc]


def measure(name: str, work: Path, count: int, benign: int) -> dict[str, Any]:
    work.mkdir(parents=True, exist_ok=True)
    pipe = load(name)
    compared = work / "masks.json"
    if not compared.is_file():
        compared.write_text(to_json(against_the_judge(pipe, name)))
    masks = json.loads(compared.read_text())
    print(name, masks, flush=True)
    banks = {}
    for kind in KINDS:
        banks[kind] = bank_of(pipe, name, kind, work)
        print(name, kind, banks[kind].calibration, flush=True)
    row = {"masks": masks, "banks": evaluated(pipe, name, banks, work, count, benign)}
    for kind, bank in banks.items():
        assert bank.calibration is not None
        row["banks"][kind]["calibration"] = {
            key: value for key, value in attrs.asdict(bank.calibration).items() if key in ("probe", "threshold", "grow")
        } | {key: bank.calibration.measured[key] for key in ("recall", "false_positive")}
    return row


def totals(results: Mapping[str, Any]) -> dict[str, Any]:
    """{kind: counts over every pipeline}; "said": of tasks whose prompt says the concept, "source": whose source shows
    it, each with the points by which the kind is apart from the judge's on the same tasks."""
    rows = list(results["pipelines"].values())
    table: dict[str, Any] = {}
    for kind in KINDS:
        banks = [row["banks"][kind] for row in rows]
        false = [bank["benign"]["false_located"] for bank in banks]
        table[kind] = {"false_located": _sum(false)}
        for part, groups in (("said", ("prompt", "instruction")), ("source", ("source",))):
            cells = [bank[group] for bank in banks for group in groups if group in bank]
            erased = [mark == "1" for cell in cells for mark in cell["erased_each"] if mark != "-"]
            judged = table[JUDGE][part]["each"] if kind != JUDGE else erased
            counts = {key: _sum([cell[key] for cell in cells]) for key in ("erased", "first", "located", "kept")}
            apart = [100 * points for points in paired_difference(erased, judged)]
            table[kind][part] = {**counts, "each": erased, "apart": apart}
    return table


def _sum(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return rate(sum(cell["hits"] for cell in cells), sum(cell["of"] for cell in cells))


def page(results: Mapping[str, Any]) -> str:
    missing = [name for name in PIPELINES if name not in results["pipelines"]]
    facts = {"concept": CONCEPT, "compared": COMPARED, "missing": missing}
    return render(TEMPLATES / "masks.md.j2", total=totals(results), **facts, **results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("out/masks"))
    parser.add_argument("--pipelines", default=",".join(PIPELINES))
    parser.add_argument("--tasks", type=int, default=32, help="unsafe tasks of a pipeline and way in")
    parser.add_argument("--benign", type=int, default=64)
    parser.add_argument("--from", dest="written", action="store_true", help="Write the page again from the JSON.")
    arguments = parser.parse_args()
    path = arguments.out / "figures" / "masks.json"
    if not arguments.written:
        results: dict[str, Any] = {
            "tasks": arguments.tasks, "benign": arguments.benign, "collected": COLLECTED, "calibrated": CALIBRATED,
            "tuning": TUNING, "reported": REPORTED, "pipelines": {},
        }  # fmt: skip
        before = json.loads(path.read_text()) if path.exists() else {}
        # Pipelines of another run under the same settings stay.
        if {**before, "pipelines": {}} == json.loads(to_json(results)):
            results["pipelines"] = before["pipelines"]
        for name in arguments.pipelines.split(","):
            row = measure(name, arguments.work / name, arguments.tasks, arguments.benign)
            results["pipelines"][name] = row
            path.write_text(to_json(results) + "\n")
    (arguments.out / "masks.md").write_text(page(json.loads(path.read_text())), "utf-8")


if __name__ == "__main__":
    main()
