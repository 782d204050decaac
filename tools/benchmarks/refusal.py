"""Early refusal: how much of what is unsafe is refused by which step, and what a refused image costs.

    python benchmarks/refusal.py --out docs [--count 32]

Recall and false refusals by step, from one observed run of held-out tasks in drawing styles that the anchors never saw;
the time of a refused single image over its stock generation. Writes figures/refusal.json, figures/refusal.png and
refusal.md; `--from` writes page and figure again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tables import run

import uvr_core
import uvr_zoo
from uvr_evaluation.statistics import rate
from uvr_zoo.demo import benign_tasks, cases, unsafe_tasks
from uvr_zoo.experiment import generate, settings

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


def share_of_cost(row: Mapping[str, Any]) -> list[float]:
    """Of each refused image, the share of the steps that was begun."""
    return [(first + 1) / row["steps"] for first in row["first_step"] if first is not None]


def page(table: Mapping[str, Any], count: int) -> str:
    lines = [
        "# Early refusal, measured", "",
        f"Written by `benchmarks/refusal.py` from `figures/refusal.json`; {count} unsafe tasks a row, {2 * count} "
        "benign ones a pipeline. Do not edit.", "",
        "Policy `refuse` with the shipped calibrations (benign budget 1.5%). A concept is looked for in its window "
        "alone.", "",
        "![recall by step](figures/refusal.png)", "",
        "| pipeline | concept | refused, of all (95%) | by step 1 | by step 3 (15% of the steps) | steps begun, mean | "
        "time of a refused image over stock's, median (range) | benign refused (95%) |",
        "|---" * 8 + "|",
    ]  # fmt: skip
    for name, rows in table.items():
        for case, row in rows.items():
            counts, total = by_step(row["first_step"], row["steps"]), len(row["first_step"])
            shares = share_of_cost(row)
            early = counts[int(EARLY * row["steps"]) - 1]
            mean = f"{100 * statistics.mean(shares):.0f}%" if shares else "–"
            took = (
                f"{statistics.median(row['cost']):.2f} ({min(row['cost']):.2f}–{max(row['cost']):.2f})"
                if row["cost"]
                else "–"
            )
            false = rate(sum(f is not None for f in row["false_first_step"]), len(row["false_first_step"]))
            lines.append(
                f"| {name} | {case} | {_cell(rate(counts[-1], total))} | {counts[0]} | {early} | {mean} | {took} | "
                f"{_cell(false)} |"
            )
    timed = [
        (step, ratio) for rows in table.values() for row in rows.values()
        for step, ratio in zip(row["refused_at"], row["cost"], strict=True)
    ]  # fmt: skip
    costs = [ratio for _, ratio in timed]
    lines += [
        "", f"Of {len(costs)} refused single images that were timed, {sum(c > EARLY for c in costs)} cost more than "
        f"{EARLY:.0%} of their stock generation (median {statistics.median(costs):.2f}, mean "
        f"{statistics.mean(costs):.2f}).", "",
        "`Refuse(steps=N, then=Selective())` refuses in the first N steps alone and regulates what is located later. From "
        "the same runs:", "",
        f"| N | refused | of those timed, over {EARLY:.0%} | the dearest | handed on |",
        "|---" * 5 + "|",
    ]  # fmt: skip
    cases = [(f"{name} {case}", row["first_step"]) for name, rows in table.items() for case, row in rows.items()]
    for steps in SOON:
        within = [ratio for step, ratio in timed if step < steps]
        late = {title: sum(first is not None and first >= steps for first in found) for title, found in cases}
        refused = sum(first is not None and first < steps for _, found in cases for first in found)
        handed = "; ".join(f"{title} {number}" for title, number in late.items() if number) or "nothing"
        lines.append(
            f"| {steps} | {refused} | {sum(c > EARLY for c in within)}/{len(within)} | {max(within):.2f} | {handed} |"
        )
    return "\n".join(lines) + "\n"


def _cell(counted: Mapping[str, Any]) -> str:
    low, high = counted["ci95"]
    return f"{counted['hits']}/{counted['of']} ({100 * low:.0f}–{100 * high:.0f}%)"


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
