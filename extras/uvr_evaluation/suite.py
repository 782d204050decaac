"""`uvr eval --suite`: published sets under one policy and its baselines, and the table that papers print."""

from __future__ import annotations

import inspect
import json
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from uvr_core import UVRError
from uvr_core.cli.judges import threshold_of
from uvr_core.concepts import resolve
from uvr_core.errors import did_you_mean
from uvr_core.files import to_json, write_whole

from . import quality
from .comparison import evaluate, require
from .published import PREFIX, published, read_published
from .question import judges_of
from .rows import read_rows
from .suite_page import text_of

SCHEMA = "uvr.suite/1"
TABLE = Path(__file__).with_name("suites.toml")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@attrs.frozen(kw_only=True)
class Suite:
    """A row of suites.toml."""

    name: str
    title: str
    unsafe: tuple[str, ...] = attrs.field(converter=tuple)
    benign: str
    benign_limit: int
    concept: str
    judge: str
    threshold: float

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of its sets, the benign one last."""
        return (*self.unsafe, self.benign)


@attrs.frozen(kw_only=True)
class Measures:
    """What the pictures of the benign set are measured by.

    Attributes:
        features: of the Fréchet distance, see `quality.frechet`; "": not measured.
        clip: CLIP model, see `quality.clip_scores`; "": not measured.
        real: folder of photographs; FID is then measured to these as well as to stock's pictures.
    """

    features: str = quality.INCEPTION
    clip: str = quality.CLIP
    real: Path | None = None


def find_suite(name: str) -> Suite:
    """The suite of a name. Raises UVRError: there is none."""
    known = {key: Suite(name=key, **row) for key, row in tomllib.loads(TABLE.read_text("utf-8")).items()}
    if name not in known:
        raise UVRError(f"no suite {name!r}{did_you_mean(name, known)} There is: {', '.join(known)}")
    return known[name]


def texts_of(suite: Suite, sets: Sequence[str], copies: Mapping[str, str]) -> dict[str, str]:
    """{set: what `--prompts` would be} of the sets that are run, all of the suite's unless some are named."""
    for name in (*sets, *copies):
        if name not in suite.sets:
            raise UVRError(f"suite {suite.name} has no set {name!r}{did_you_mean(name, suite.sets)}")
    return {
        name: f"{PREFIX}{name}" + (f"={copies[name]}" if name in copies else "")
        for name in suite.sets
        if not sets or name in sets
    }


def run_suite(
    pipe: Any,
    suite: Suite,
    out: Path,
    *,
    texts: Mapping[str, str],
    concepts: object,
    judges: Sequence[str] = (),
    threshold: float | None = None,
    limit: int | None = None,
    measures: Measures | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate every set in a folder of its own (see `evaluate`), then measure quality on the benign one.

    Every set is read before anything is drawn, so that a gated one is known at once. Called again it goes on.

    Args:
        pipe: a pipeline, or a function that loads it. texts: see `texts_of`. concepts: one of the suite's name.
        judges: others than the suite's, whose threshold is then their own. threshold: of the suite's judge.
        options: of `evaluate`, for each set.

    Returns:
        What suite.json holds: {"judge", "threshold", "sets", "arms": {arm: {"sets": {set: counts}, "benign", "fid",
        "fid_real", "clip", "time", "seconds"}}, "notes"}, or {"unfinished": tasks} while other processes have some.

    Raises:
        UVRError: bad input, a set that cannot be read, no concept of that name.
    """
    require()
    measures = measures or Measures()
    threshold = suite.threshold if threshold is None else threshold
    limits = {name: _least(limit, suite.benign_limit if name == suite.benign else None) for name in texts}
    _check(suite, texts, limits, concepts)
    counted = judges_of(judges) if judges else judges_of([suite.judge], threshold=threshold)
    pipe = pipe() if inspect.isfunction(pipe) else pipe
    summaries = {
        name: evaluate(pipe, text, out / name, judges=counted, concepts=concepts, limit=limits[name], **options)
        for name, text in texts.items()
    }
    if unfinished := sum(summary["unfinished"] for summary in summaries.values()):
        return {"unfinished": unfinished}
    first, judge = next(iter(counted.items()))
    result = {
        "schema": SCHEMA,
        "suite": suite.name,
        "title": suite.title,
        "judge": first,
        "threshold": threshold_of(judge),
        "sets": {name: _said(name, summary) for name, summary in summaries.items()},
        **_arms(suite, out, summaries, measures),
    }
    write_whole(out / "suite.json", to_json(result) + "\n")
    write_whole(out / "suite.md", text_of(result))
    return result


def _check(suite: Suite, texts: Mapping[str, str], limits: Mapping[str, int | None], concepts: object) -> None:
    """Raise UVRError unless every set can be read and the suite's concept is there."""
    for name, text in texts.items():
        read_published(text, limit=limits[name])
    if suite.concept not in (names := [bank.name for bank, _ in resolve(concepts)]):
        raise UVRError(
            f"suite {suite.name}: needs a concept called {suite.concept}, got {', '.join(names) or 'none'}; "
            "`uvr concept rename` changes a name"
        )


def _said(name: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    row = published()[name]
    return {"tasks": summary["tasks"], "unsafe": bool(row.concept), "licence": row.licence or "not known"}


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _arms(
    suite: Suite, out: Path, summaries: Mapping[str, Mapping[str, Any]], measures: Measures
) -> dict[str, dict[str, Any] | list[str]]:
    """{"arms", "notes"}: an arm's counts on each set, its quality on the benign one, and its time."""
    arms: dict[str, dict[str, Any]] = {}
    for name, summary in summaries.items():
        for arm, cells in summary["arms"].items():
            if "unsupported" in cells:
                continue
            entry = arms.setdefault(arm, {"sets": {}, "ratios": []})
            group = next(iter(cells["groups"].values()))
            keys = ("erased", "safe_share", "left", "located") if group["unsafe"] else ("left", "false_located")
            entry["sets"][name] = {key: group.get(key) for key in keys}
            entry["ratios"] += [cells["time"]["ratio_to_stock"]] if cells["time"] else []
    for arm, entry in arms.items():
        ratios = entry.pop("ratios")
        entry["time"] = statistics.median(ratios) if ratios else None
        entry["seconds"] = _seconds([out / name for name in summaries], arm)
    notes = _quality(out / suite.benign, arms, measures) if suite.benign in summaries else ["no benign set was run"]
    return {"arms": arms, "notes": notes}


def _seconds(folders: Sequence[Path], arm: str) -> float | None:
    """Of one picture: seconds of all batches over their pictures."""
    rows = [(folder, row) for folder in folders for row in read_rows(folder) if row["arm"] == arm]
    batches = {(folder, row["batch"]): row["seconds"] for folder, row in rows if row.get("seconds") is not None}
    return sum(batches.values()) / len(rows) if batches else None


def _quality(folder: Path, arms: Mapping[str, dict[str, Any]], measures: Measures) -> list[str]:
    """FID to stock (and to `real`) and CLIP score of every arm, put into its entry; what could not be measured."""
    rows = read_rows(folder)
    prompts = {task["index"]: task["prompt"] for task in _tasks(folder)}
    pictures = {arm: {r["task"]: folder / r["file"] for r in rows if r["arm"] == arm and r["file"]} for arm in arms}
    notes, distance, score = [], None, None
    try:
        distance = quality.frechet(measures.features) if measures.features else None
    except UVRError as error:
        notes.append(str(error))
    try:
        score = quality.clip_scores(measures.clip) if measures.clip else None
    except UVRError as error:
        notes.append(str(error))
    real = sorted(p for p in measures.real.rglob("*") if p.suffix.lower() in PICTURES) if measures.real else []
    stock = list(pictures["stock"].values())
    for arm, entry in arms.items():
        files = list(pictures[arm].values())
        entry["withheld"] = len(prompts) - len(files)
        entry["fid"] = distance(files, stock) if distance and arm != "stock" else None
        entry["fid_real"] = distance(files, real) if distance and real else None
        entry["clip"] = score([(file, prompts[task]) for task, file in pictures[arm].items()]) if score else None
    return notes


def _tasks(folder: Path) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = json.loads((folder / "config.json").read_text("utf-8"))["tasks"]
    return tasks
