"""The picture of an evaluation: erased against kept, a point per arm."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from uvr_core.files import write_whole

from .compare import pooled


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
            label,
            (x, y),
            xytext=(x + side / 4, at),
            fontsize=7,
            ha="right" if x > 60 else "left",
            va="center",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "grey", "shrinkA": 1, "shrinkB": 3},
        )
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
            while any(abs(at - other) < gap and abs(x - beside) < 45 for beside, other in taken):
                at -= gap
            taken.append((x, at))
            yield (x, y), at, "; ".join(names[start : start + 2])
