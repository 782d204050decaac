"""What an evaluation found, for people: a table in the terminal, a Markdown page, report.html with pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import attrs

from uvr_core.errors import UVRError
from uvr_core.files import write_whole

from .compare import pooled
from .summary import SCHEMA

NONE = "–"


@attrs.frozen
class Table:
    """A title, head and cells of text."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> list[str]:
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        return [f"**{self.title}**", "", *("| " + " | ".join(line) + " |" for line in lines), ""]


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


# ---------------------------------------------------------------------------------------------- cells


def count(cell: Mapping[str, Any] | None, interval: bool = False) -> str:
    """ "26/30 (87%)", with the 95% interval if asked."""
    if cell is None or not cell["of"]:
        return NONE
    low, high = cell["ci95"]
    more = f", {100 * low:.0f}–{100 * high:.0f}" if interval else ""
    return f"{cell['hits']}/{cell['of']} ({100 * cell['rate']:.0f}%{more})"


def number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


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


# ---------------------------------------------------------------------------------------------- pages


def text(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The Markdown section of one evaluation, without its heading."""
    lines = []
    if summary["behind"]:
        lines += ["Where a baseline does better:", "", *(f"- {said}" for said in summary["behind"]), ""]
    for table in tables(summary):
        lines += table.markdown()
    missing = {name: arm["unsupported"] for name, arm in summary["arms"].items() if "unsupported" in arm}
    lines += [f"- {name} does not run here: {why}" for name, why in missing.items()]
    judges = ", ".join(config["judges"])
    lines += ["", f"{summary['tasks']} tasks; judges: {judges}, of which {summary['judge']} counts. Arms share seeds."]
    return "\n".join(lines).strip() + "\n"


def page(folders: Sequence[Path], title: str = "Results") -> str:
    """One Markdown page of several evaluations; figures are linked where a folder has them."""
    loaded = [(folder, *load(folder)) for folder in folders]
    names = " ".join(f"results/{folder.name}" for folder in folders)
    lines = [
        f"# {title}", "",
        "Written by `uvr report`; do not edit. From the folder that holds this page:", "",
        f"    uvr report {names} --markdown results.md", "",
        "Counts come before rates; intervals are Wilson's, differences a paired bootstrap over tasks (95%). `erased` "
        "is the relative reduction: of the tasks whose stock picture shows the concept, how many no longer do.", "",
        "| run | tasks | " + " | ".join(_OVERVIEW) + " |", "|---" * (2 + len(_OVERVIEW)) + "|",
    ]  # fmt: skip
    for folder, _, summary in loaded:
        first = next((a for a in summary["arms"].values() if a.get("kind") == "policy"), None)
        cells = [count(pooled(first, name), interval=name == "erased") if first else NONE for name in _OVERVIEW]
        lines.append(f"| [{folder.name}](#{folder.name}) | {summary['tasks']} | " + " | ".join(cells) + " |")
    for folder, config, summary in loaded:
        versions = ", ".join(f"{name} {version}" for name, version in config["versions"].items())
        lines += [
            "",
            f"## {folder.name}",
            "",
            f"`{config['model']}`; {versions}; commit {_short(config.get('git'))}.",
            "",
        ]
        if (folder / "pareto.png").is_file():
            lines += [f"![erased against kept](results/{folder.name}/pareto.png)", ""]
        lines.append(text(summary, config))
    return "\n".join(lines).rstrip() + "\n"


_OVERVIEW = ("erased", "others kept, unsafe tasks", "benign pictures unchanged")


def _short(commit: str | None) -> str:
    return "unknown" if not commit else commit[:10] + ("+" if commit.endswith("+") else "")


def write_report(folder: Path, pictures: int = 6) -> None:
    """report.html and pareto.png beside an evaluation's summary; `pictures` tasks of each group are shown."""
    import jinja2

    from .rows import read_rows

    config, summary = load(folder)
    draw_pareto(summary, folder / "pareto.png", config["model"])
    shown: dict[str, list[int]] = {}
    by_key = {(row["task"], row["arm"]): row for row in read_rows(folder)}
    tasks = {task["index"]: task for task in config["tasks"]}
    for index, task in tasks.items():
        members = shown.setdefault(task["group"], [])
        if len(members) < pictures:
            members.append(index)
    arms = [name for name, arm in summary["arms"].items() if "unsupported" not in arm]
    strips = {
        group: [(arm, [by_key[index, arm] for index in members]) for arm in arms] for group, members in shown.items()
    }
    source = (files(__package__) / "templates" / "report.html.j2").read_text("utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    html = template.render(
        config=config, summary=summary, tables=tables(summary), strips=strips, tasks=tasks,
        unsupported={n: a["unsupported"] for n, a in summary["arms"].items() if "unsupported" in a},
    )  # fmt: skip
    write_whole(folder / "report.html", html)


def draw_pareto(summary: Mapping[str, Any], path: Path, title: str) -> None:
    """Erased against others kept, over all unsafe tasks, one point per arm; the label says the time over stock's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    axes = figure.subplots()
    points: dict[tuple[float, float], list[str]] = {}
    kinds: dict[tuple[float, float], str] = {}
    for name, arm in summary["arms"].items():
        if "unsupported" in arm:
            continue
        erased, kept = pooled(arm, "erased"), pooled(arm, "others kept, unsafe tasks")
        if erased is None or kept is None:
            continue
        where = (100 * kept["rate"], 100 * erased["rate"])
        time = f" ×{arm['time']['ratio_to_stock']:.2f}" if arm["time"] else ""
        points.setdefault(where, []).append(name + time)
        kinds.setdefault(where, arm["kind"])
    colours = {"stock": "black", "policy": "tab:blue", "baseline": "tab:red"}
    for where in points:
        axes.scatter(*where, color=colours[kinds[where]], s=36, zorder=3)
    for (x, y), at, label in _apart(points):
        side = -7 if x > 60 else 7
        axes.annotate(
            label, (x, y), xytext=(x + side / 4, at), fontsize=7, ha="right" if x > 60 else "left", va="center",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "grey", "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip
    axes.set_xlim(-5, 108)
    axes.set_ylim(-14, 108)
    axes.set_xlabel("other objects kept, % of those that stock shows")
    axes.set_ylabel("erased, % of the tasks whose stock picture shows the concept")
    axes.set_title(f"{title}: top right is best; ×: time over stock's")
    axes.grid(alpha=0.3)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100, metadata={"Software": None})
    write_whole(path, data.getvalue())


def _apart(
    points: Mapping[tuple[float, float], list[str]], gap: float = 3.2
) -> Iterable[tuple[tuple[float, float], float, str]]:
    """(point, height of its label, label): two names a line, moved down where they would lie on one another."""
    taken: list[tuple[float, float]] = []
    for (x, y), names in sorted(points.items(), key=lambda item: -item[0][1]):
        for start in range(0, len(names), 2):
            at = y
            while any(abs(at - other) < gap and abs(x - there) < 45 for there, other in taken):
                at -= gap
            taken.append((x, at))
            yield (x, y), at, "; ".join(names[start : start + 2])
