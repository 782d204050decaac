"""The first policy against the baselines: figures over all groups of tasks, and where a baseline does better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .statistics import rate

# Figure -> (how to read it from a group, whether more is better, for which groups).
FIGURES: Mapping[str, tuple[str, bool, bool | None]] = {
    "erased": ("erased", True, True),
    "others kept, unsafe tasks": ("kept", True, True),
    "others kept, benign tasks": ("kept", True, False),
    "benign pictures unchanged": ("identical", True, False),
    "benign pictures refused": ("refused", False, False),
}


def pooled(arm: Mapping[str, Any], figure: str) -> dict[str, Any] | None:
    """A figure over all groups to which it applies, as a count; None if there is nothing to count."""
    name, _, unsafe = FIGURES[figure]
    cells = [g[name] for g in arm["groups"].values() if unsafe is None or g["unsafe"] == unsafe if name in g]
    of = sum(cell["of"] for cell in cells)
    return rate(sum(cell["hits"] for cell in cells), of) if of else None


def behind(summary: Mapping[str, Any]) -> list[str]:
    """In words, every figure in which a baseline does better than the first policy. Said first in every report."""
    measured = {name: arm for name, arm in summary["arms"].items() if "unsupported" not in arm}
    policy = next((name for name, arm in measured.items() if arm["kind"] == "policy"), None)
    if policy is None:
        return []
    better = []
    for name, arm in measured.items():
        if arm["kind"] != "baseline":
            continue
        for figure, (_, more, _) in FIGURES.items():
            ours, theirs = pooled(measured[policy], figure), pooled(arm, figure)
            if ours is None or theirs is None or ours["rate"] == theirs["rate"]:
                continue
            if (theirs["rate"] > ours["rate"]) == more:
                counts = f"{theirs['hits']} of {theirs['of']} against {ours['hits']} of {ours['of']}"
                better.append(f"{name} does better than {policy} in {figure}: {counts}")
        ours, theirs = measured[policy]["time"], arm["time"]
        if ours and theirs and theirs["ratio_to_stock"] < ours["ratio_to_stock"]:
            better.append(
                f"{name} is faster than {policy}: {theirs['ratio_to_stock']:.2f} of stock's time against "
                f"{ours['ratio_to_stock']:.2f}"
            )
    return better
