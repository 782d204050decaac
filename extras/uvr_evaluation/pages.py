"""What an evaluation found, for people: a table in the terminal, a Markdown page, report.html with pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from uvr_core import UVRError
from uvr_core.files import write_whole

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
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


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


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """One table per group of tasks, and one of times."""
    measured = {name: arm for name, arm in summary["arms"].items() if "unsupported" not in arm}
    groups = list(next(iter(measured.values()))["groups"]) if measured else []
    made = []
    for group in groups:
        cells = {name: arm["groups"][group] for name, arm in measured.items()}
        made.append(_unsafe(group, cells) if next(iter(cells.values()))["unsafe"] else _benign(group, cells))
    times = [
        (name, number(arm["time"]["ratio_to_stock"]), "{:.2f}–{:.2f}".format(*arm["time"]["range"]))
        for name, arm in measured.items()
        if arm["time"]
    ]
    made.append(Table("Time of a batch over stock's, median and range over batches", ("arm", "ratio", "range"),
                      tuple(times)))  # fmt: skip
    if summary["judges"]:
        rows = tuple((pair, count(cell["disagree"])) for pair, cell in summary["judges"].items())
        made.append(Table("Judges that disagree on whether a picture is unsafe", ("judges", "pictures"), rows))
    return made


def _unsafe(group: str, cells: Mapping[str, Mapping[str, Any]]) -> Table:
    edits = any(cell["carried_out"]["of"] for cell in cells.values())
    head = ("arm", "shows it, of all", "erased, of those that stock shows (95%)", "1 − unsafe/all",
            "unsafe minus stock, points (95%)", "others kept", *(("all expected shown",) if edits else ()),
            "refused", "located", "IoU", "AUROC", "SSIM outside")  # fmt: skip
    rows = tuple(
        (
            name, count(c["left"]), count(c["erased"], interval=True), count(c["safe_share"]),
            _difference(c["difference"]), count(c["kept"]), *((count(c["carried_out"]),) if edits else ()),
            count(c["refused"]) if c["refused"]["hits"] else NONE, count(c.get("located")), number(c.get("iou")),
            number(c.get("auroc")), number(c["ssim"], 3),
        )
        for name, c in cells.items()
    )  # fmt: skip
    return Table(f"{group}: {next(iter(cells.values()))['tasks']} unsafe tasks", head, rows)


def _benign(group: str, cells: Mapping[str, Mapping[str, Any]]) -> Table:
    edits = any(cell["carried_out"]["of"] for cell in cells.values())
    head = ("arm", "falsely located (95%)", "picture unchanged", "unchanged where nothing was located", "objects kept",
            *(("all expected shown",) if edits else ()), "refused", "judged unsafe", "SSIM", "PSNR")  # fmt: skip
    rows = tuple(
        (
            name, count(c.get("false_located"), interval=True), count(c["identical"]) if name != "stock" else NONE,
            count(c.get("identical_where_not_located")), count(c["kept"]),
            *((count(c["carried_out"]),) if edits else ()), count(c["refused"]) if c["refused"]["hits"] else NONE,
            count(c["left"]), number(c["ssim"], 3), number(c["psnr"], 1),
        )
        for name, c in cells.items()
    )  # fmt: skip
    return Table(f"{group}: {next(iter(cells.values()))['tasks']} benign tasks", head, rows)


def text(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The Markdown section of one evaluation, without its heading."""
    return render(OWN / "section.md.j2", **_section(summary, config)).strip() + "\n"


def _section(summary: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    unsupported = {name: arm["unsupported"] for name, arm in summary["arms"].items() if "unsupported" in arm}
    return {"summary": summary, "config": config, "tables": tables(summary), "unsupported": unsupported}


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
        group: [(arm, [by_key[index, arm] for index in members]) for arm in arms] for group, members in shown.items()
    }
    tasks = {task["index"]: task for task in config["tasks"]}
    html = render(OWN / "report.html.j2", strips=strips, tasks=tasks, **_section(summary, config))
    write_whole(folder / "report.html", html)
