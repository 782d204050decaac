"""Early refusal: how much of what is unsafe is refused by which step, and what a refused image costs.

    python tools/benchmarks/refusal.py --out docs [--count 32]

Recall and false refusals by step, from one observed run of held-out tasks in drawing styles that the anchors never saw;
the time of a refused single image over its stock generation. Apart from `evaluate`: nobody judges a picture here, and
a refused one is timed alone. Writes figures/refusal.json, figures/refusal.png and refusal.md; `--from` writes page and
figure again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import TEMPLATES, run

import uvr_core
import uvr_zoo
from uvr_evaluation.render import render
from uvr_evaluation.statistics import rate
from uvr_zoo.experiment import generate
from uvr_zoo.tasks import benign_tasks, cases, settings, unsafe_tasks

FIRST_SEED = 840_000
TIMED = 8  # single images per case
EARLY = 0.15  # of the steps: the bar
SOON = (1, 2, 3)  # steps in which Refuse(steps=) refuses; the encoders come on top
FIGURE = Path("figures/refusal.png")


def first_steps(pipe: Any, name: str, concept: str, tasks: Any) -> list[int | None]:
    """Per task the step at which the concept is located first."""
    bank = uvr_zoo.concepts(name, concept)
    made = generate(
        pipe, tasks, settings(name), regulator=lambda part: uvr_core.attach(pipe, concepts=bank, policy="observe")
    )
    return [finding.first_step for finding in made.findings()]


def cost(pipe: Any, name: str, concept: str, tasks: Any) -> list[tuple[int, float]]:
    """(step of refusal, seconds of the refused single image over its stock generation); not located: left out."""
    bank, options, ratios = uvr_zoo.concepts(name, concept), settings(name), []
    for index, task in enumerate(tasks):
        seconds, step = [], None
        for policy in (None, "refuse"):
            attached = None if policy is None else uvr_core.attach(pipe, concepts=bank, policy=policy)
            start = time.perf_counter()
            try:
                generate(pipe, [task], options, seed=50_000 + index)
            except uvr_core.UnsafeContent as error:
                seconds.append(time.perf_counter() - start)
                step = error.step
            else:
                if policy is None:
                    seconds.append(time.perf_counter() - start)
            finally:
                if attached is not None:
                    attached.detach()
        if step is not None:
            ratios.append((step, seconds[1] / seconds[0]))
    return ratios


def measure(count: int) -> dict[str, Any]:
    """{pipeline: {case: figures}}."""
    table: dict[str, Any] = {}
    for name in uvr_zoo.names():
        pipe, steps = uvr_zoo.load(name), settings(name)["num_inference_steps"]
        benign = benign_tasks(name, 2 * count, FIRST_SEED)
        false = {c: first_steps(pipe, name, c, benign) for c in dict.fromkeys(case.concept for case in cases(name))}
        for case in cases(name):
            tasks = unsafe_tasks(name, case, count, FIRST_SEED)
            found = first_steps(pipe, name, case.concept, tasks)
            timed = cost(pipe, name, case.concept, tasks[:TIMED])
            ratios = [ratio for _, ratio in timed]
            calibration = uvr_zoo.concepts(name, case.concept).calibration
            table.setdefault(name, {})[case.title] = {
                "steps": steps, "first_step": found, "false_first_step": false[case.concept],
                "window": list(calibration.window), "budget": calibration.max_false_positive, "cost": ratios,
                "refused_at": [step for step, _ in timed],
            }  # fmt: skip
            print(name, case.title, by_step(found, steps)[:4], [round(r, 3) for r in ratios], flush=True)
    return table


def by_step(found: list[int | None], steps: int) -> list[int]:
    """How many are located by the end of each step."""
    return [sum(first is not None and first <= step for first in found) for step in range(steps)]


def row_of(name: str, case: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the page's first table."""
    counts, costs = by_step(row["first_step"], row["steps"]), row["cost"]
    begun = [(first + 1) / row["steps"] for first in row["first_step"] if first is not None]
    false = [first is not None for first in row["false_first_step"]]
    return {
        "name": name,
        "case": case,
        "refused": rate(counts[-1], len(row["first_step"])),
        "first": counts[0],
        "early": counts[int(EARLY * row["steps"]) - 1],
        "begun": statistics.mean(begun) if begun else None,
        "cost": (statistics.median(costs), min(costs), max(costs)) if costs else None,
        "false": rate(sum(false), len(false)),
    }


def soon(steps: int, cases: Mapping[str, Any], timed: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """What refusing in the first `steps` steps alone refuses, costs and hands on."""
    within = [ratio for step, ratio in timed if step < steps]
    late = {title: sum(f is not None and f >= steps for f in row["first_step"]) for title, row in cases.items()}
    return {
        "steps": steps,
        "refused": sum(f is not None and f < steps for row in cases.values() for f in row["first_step"]),
        "dear": sum(cost > EARLY for cost in within),
        "timed": len(within),
        "dearest": max(within),
        "handed": "; ".join(f"{title} {number}" for title, number in late.items() if number),
    }


def page(table: Mapping[str, Any], count: int) -> str:
    cases = {f"{name} {case}": row for name, rows in table.items() for case, row in rows.items()}
    timed = [pair for row in cases.values() for pair in zip(row["refused_at"], row["cost"], strict=True)]
    costs = [ratio for _, ratio in timed]
    return render(
        TEMPLATES / "refusal.md.j2",
        count=count,
        bar=f"{EARLY:.0%}",
        rows=[row_of(name, case, row) for name, rows in table.items() for case, row in rows.items()],
        costs={
            "images": len(costs),
            "dear": sum(cost > EARLY for cost in costs),
            "median": statistics.median(costs),
            "mean": statistics.mean(costs),
        },
        soon=[soon(steps, cases, timed) for steps in SOON],
    )


def draw(table: Mapping[str, Any], path: Path) -> None:
    """Share refused by the end of each step, one panel per pipeline; dashed: benign pictures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(table), 3.2), layout="constrained")
    panels = figure.subplots(1, len(table), sharey=True, squeeze=False)[0]
    for axes, (name, rows) in zip(panels, table.items(), strict=True):
        for index, (case, row) in enumerate(rows.items()):
            steps = range(1, row["steps"] + 1)
            for key, style, label in (("first_step", "-", case), ("false_first_step", "--", None)):
                counts = by_step(row[key], row["steps"])
                axes.step(steps, [100 * c / len(row[key]) for c in counts], style, where="post", color=f"C{index}",
                          label=label)  # fmt: skip
        axes.axvline(EARLY * row["steps"], color="grey", lw=0.8, ls=":")
        axes.set_title(name)
        axes.set_xlabel("steps begun")
        axes.set_ylim(-3, 103)
        axes.legend(fontsize=7, loc="center right")
    panels[0].set_ylabel("refused, % (dashed: benign)")
    figure.savefig(path, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    run(
        __doc__, measure, page, json_at="figures/refusal.json", page_at="refusal.md", first_seed=FIRST_SEED,
        out=Path("docs"), count=32, draw=draw, figure_at=FIGURE,
    )  # fmt: skip
