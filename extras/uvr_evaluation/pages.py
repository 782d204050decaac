"""What an evaluation found, for people: a table in the terminal, a Markdown page, report.html with pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from uvr_core import UVRError
from uvr_core.cli.judges import with_threshold
from uvr_core.files import write_whole

from .arms import STOCK
from .compare import pooled
from .pareto import draw_pareto
from .render import NONE, OWN, count, number, render
from .rows import read_rows
from .summary import SCHEMA

OVERVIEW = ("erased", "others kept, unsafe tasks", "benign pictures unchanged")


@attrs.frozen
class Table:
    """A title, head and cells of text."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and summary.json of a finished evaluation.

    Raises:
        UVRError: they are not there, or not of this version.
    """
    config, summary = (_read(folder / name) for name in ("config.json", "summary.json"))
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
        raise UVRError(f"{folder / 'summary.json'}: expected schema {SCHEMA!r}; this is no result of `uvr eval`")
    return config, summary


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UVRError(f"{path}: no such file; `uvr eval` writes it when it is done") from error
    except ValueError as error:
        raise UVRError(f"{path}: not a whole JSON file: {error}") from error


def show(files: Sequence[Path], whole: bool) -> str:
    """For `uvr report`: the tables of the evaluations whose summary.json these are, or one Markdown page of them."""
    folders = [file.parent for file in files]
    if whole:
        return page(folders)
    return "\n".join(text(summary, config) for config, summary in map(load, folders))


def _difference(cell: Mapping[str, Any]) -> str:
    low, high = cell["ci95"]
    return f"{100 * cell['left_minus_stock']:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"


Columns = Mapping[str, Callable[[Mapping[str, Any]], str]]  # title -> how the figures of an arm are said
ASKED_FOR = "all expected shown"  # a column where tasks say what to expect
UNSAFE: Columns = {
    "shows it, of all": lambda c: count(c["left"]),
    "erased, of those that stock shows (95%)": lambda c: count(c["erased"], interval=True),
    "1 − unsafe/all": lambda c: count(c["safe_share"]),
    "unsafe minus stock, points (95%)": lambda c: _difference(c["difference"]),
    "others kept": lambda c: count(c["kept"]),
    ASKED_FOR: lambda c: count(c["carried_out"]),
    "refused": lambda c: count(c["refused"]) if c["refused"]["hits"] else NONE,
    "located": lambda c: count(c.get("located")),
    "IoU": lambda c: number(c.get("iou")),
    "AUROC": lambda c: number(c.get("auroc")),
    "SSIM outside": lambda c: number(c["ssim"], 3),
}
BENIGN: Columns = {
    "falsely located (95%)": lambda c: count(c.get("false_located"), interval=True),
    "picture unchanged": lambda c: count(c["identical"]),
    "unchanged where nothing was located": lambda c: count(c.get("identical_where_not_located")),
    "objects kept": lambda c: count(c["kept"]),
    ASKED_FOR: lambda c: count(c["carried_out"]),
    "refused": lambda c: count(c["refused"]) if c["refused"]["hits"] else NONE,
    "judged unsafe": lambda c: count(c["left"]),
    "SSIM": lambda c: number(c["ssim"], 3),
    "PSNR": lambda c: number(c["psnr"], 1),
}


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """One table per group of tasks, one of times, and one of judges that disagree."""
    measured = {name: arm for name, arm in summary["arms"].items() if "unsupported" not in arm}
    groups = list(next(iter(measured.values()))["groups"]) if measured else []
    panels = [
        _table(group, {name: arm["groups"][group] for name, arm in measured.items() if group in arm["groups"]})
        for group in groups
    ]
    times = {name: arm["time"] for name, arm in measured.items() if arm["time"]}
    rows = [(n, number(t["ratio_to_stock"]), "{:.2f}–{:.2f}".format(*t["range"])) for n, t in times.items()]
    panels.append(Table("Time of a batch over stock's, median and range over batches", ("arm", "ratio", "range"), rows))
    if summary["judges"]:
        pairs = [(pair, count(cell["disagree"])) for pair, cell in summary["judges"].items()]
        panels.append(Table("Judges that disagree on whether a picture is unsafe", ("judges", "pictures"), pairs))
    return panels


def _table(group: str, cells: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row per arm, of one group."""
    first = next(iter(cells.values()))
    asked_for = any(cell["carried_out"]["of"] for cell in cells.values())
    columns = {
        title: said
        for title, said in (UNSAFE if first["unsafe"] else BENIGN).items()
        if asked_for or title != ASKED_FOR
    }
    rows = []
    for name, cell in cells.items():
        cell = {**cell, "identical": None} if name == STOCK else cell  # with itself it is no finding
        rows.append((name, *(said(cell) for said in columns.values())))
    kind = "unsafe" if first["unsafe"] else "benign"
    return Table(f"{group}: {first['tasks']} {kind} tasks", ("arm", *columns), rows)


def text(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The Markdown section of one evaluation, without its heading."""
    return render(OWN / "section.md.j2", **_section(summary, config)).strip() + "\n"


def _section(summary: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    unsupported = {name: arm["unsupported"] for name, arm in summary["arms"].items() if "unsupported" in arm}
    thresholds = config.get("thresholds", {})
    judges = [with_threshold(name, thresholds.get(name)) for name in config["judges"]]
    return {
        "summary": summary,
        "config": config,
        "judges": judges,
        "tables": tables(summary),
        "unsupported": unsupported,
    }


def page(folders: Sequence[Path], title: str = "Results") -> str:
    """One Markdown page of several evaluations; figures are linked where a folder has them."""
    runs = []
    for folder in folders:
        config, summary = load(folder)
        first = next((a for a in summary["arms"].values() if a.get("kind") == "policy"), None)
        overview = [count(pooled(first, name), interval=name == "erased") if first else NONE for name in OVERVIEW]
        figure = (folder / "pareto.png").is_file()
        runs.append({"name": folder.name, "overview": overview, "figure": figure, **_section(summary, config)})
    return render(OWN / "results.md.j2", title=title, overview=OVERVIEW, runs=runs).rstrip() + "\n"


def write_report(folder: Path, pictures: int = 6) -> None:
    """report.html and pareto.png beside an evaluation's summary; `pictures` tasks of each group are shown."""
    config, summary = load(folder)
    draw_pareto(summary, folder / "pareto.png", config["model"])
    by_key = {(row["task"], row["arm"]): row for row in read_rows(folder)}
    shown: dict[str, list[int]] = {}
    for task in config["tasks"]:
        members = shown.setdefault(task["group"], [])
        if len(members) < pictures:
            members.append(task["index"])
    arms = [name for name, arm in summary["arms"].items() if "unsupported" not in arm]
    strips = {
        group: [(arm, [by_key[index, arm] for index in members if (index, arm) in by_key]) for arm in arms]
        for group, members in shown.items()
    }
    tasks = {task["index"]: task for task in config["tasks"]}
    html = render(OWN / "report.html.j2", strips=strips, tasks=tasks, **_section(summary, config))
    write_whole(folder / "report.html", html)
