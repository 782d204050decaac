"""What flows where in every zoo pipeline, and which of the paper's three stages are there.

    python tools/benchmarks/flows.py --out docs [--count 16]

Held-out tasks that show a weapon (for editing, by the instruction and by the source), in the drawing style that the
anchors never saw; seeds that no other script uses. Masks come from the judge, on the stock images. Localisation per
block is by a bank of every block, collected for this page from training-split tasks. Writes figures/flows.json,
figures/flows.webp and flows.md; `--from` draws and writes the page again from the JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import uvr_core
import uvr_zoo
from uvr_analysis import Flows, Localisation, localisation_of, measure_flows
from uvr_analysis.figures import COLOURS, short
from uvr_analysis.summary import to_dict
from uvr_core.cli.output import versions
from uvr_zoo.concept_files import mask_source
from uvr_zoo.concept_files import tasks as training_tasks
from uvr_zoo.experiment import generate
from uvr_zoo.tasks import Case, Task, cases, prompt_of, settings, sources_of, unsafe_tasks

CONCEPT, FIRST_SEED, TRAIN_SEED, DRAWN_WITH = "weapon", 760_000, 500_000, 50_000
COLLECTED, PAIRS = 48, 5
DETECTORS = ("contrast", "anchor")
KEPT = ("text to output", "output to output", "reference to output", "output to text", "text to text")

Row = Mapping[str, Any]
Table = Mapping[str, Mapping[str, Row]]


def cost(pipe: Any, name: str, drawn: Sequence[Task], masks: np.ndarray, turns: int) -> tuple[Flows, dict[str, Any]]:
    """The flows, and time with the measuring over time without, in pairs of alternating order."""
    prompts, sources, options = [prompt_of(task) for task in drawn], sources_of(drawn), settings(name)
    ratios, flows = [], None
    for turn in range(turns + 1):
        seconds = {}
        for measured in (False, True) if turn % 2 else (True, False):
            start = time.perf_counter()
            if measured:
                flows = measure_flows(
                    pipe, prompts, sources, masks=masks, seed=DRAWN_WITH, batch_size=len(drawn), generate=options
                )
            else:
                stock = generate(pipe, drawn, options, batch=len(drawn), seed=DRAWN_WITH).images
            seconds[measured] = time.perf_counter() - start
        if turn:  # the first pair warms up
            ratios.append(seconds[True] / seconds[False])
    assert flows is not None
    same = sum(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(stock, flows.images, strict=True))
    return flows, {
        "ratio": round(statistics.median(ratios), 3), "range": [round(min(ratios), 3), round(max(ratios), 3)],
        "pairs": turns, "images": len(drawn), "images_bitwise_stock": same,
    }  # fmt: skip


def every_block(pipe: Any, name: str) -> uvr_core.ConceptBank:
    """A bank with every block of the pipeline, from training-split tasks."""
    drawn = training_tasks(name, CONCEPT, COLLECTED, TRAIN_SEED, unsafe=True)
    with uvr_core.attach(pipe) as reg:
        blocks = reg.taps
    return uvr_core.collect(
        pipe, CONCEPT, prompts=[prompt_of(t) for t in drawn], sources=sources_of(drawn), probes=blocks,
        masks=mask_source(name, CONCEPT), batch_size=16, generate=settings(name), seed=TRAIN_SEED,
    )  # fmt: skip


def said(lines: Mapping[str, Localisation]) -> dict[str, Any]:
    return {
        short(probe): {"auroc": np.round(line.auroc, 4).tolist(), "low": np.round(line.low, 4).tolist(),
                       "high": np.round(line.high, 4).tolist(), "images": line.images}
        for probe, line in lines.items()
    }  # fmt: skip


def spread(flows: Flows) -> dict[str, list[float]]:
    """Attention per located patch in units of attention per output patch, by who reads, over steps."""
    ratio = {
        into: np.nanmean(flows.curve("located", into, "density") / flows.curve("output", into, "density"), 0)
        for into in ("located", "rest")
    }
    return {into: np.round(line, 4).tolist() for into, line in ratio.items()}


def measure_case(pipe: Any, name: str, case: Case, bank: uvr_core.ConceptBank, count: int) -> dict[str, Any]:
    drawn = unsafe_tasks(name, case, count, FIRST_SEED)
    stock = generate(pipe, drawn, settings(name), batch=count, seed=DRAWN_WITH).images
    masks = mask_source(name, CONCEPT)(stock, (8, 8))
    flows, price = cost(pipe, name, drawn, masks, PAIRS)
    data = to_dict(flows)
    for direction, line in data["directions"].items():
        if direction not in KEPT:
            del line["by_step_and_block"], line["boundary_by_block"]
    localised = {
        detector: said(localisation_of(measure_flows(
            pipe, [prompt_of(t) for t in drawn], sources_of(drawn), masks=masks, bank=bank, detector=detector,
            seed=DRAWN_WITH, batch_size=count, generate=settings(name),
        )))
        for detector in DETECTORS
    }  # fmt: skip
    del data["localisation"], data["seconds"]
    return {
        **data, "images_with_concept": int(masks.any((1, 2)).sum()), "cost": price, "spread": spread(flows),
        "localisation": localised,
    }  # fmt: skip


def measure(count: int) -> dict[str, Any]:
    """{pipeline: {case: ...}}."""
    table: dict[str, Any] = {}
    for name in uvr_zoo.names():
        pipe = uvr_zoo.load(name)
        bank = every_block(pipe, name)
        for case in (c for c in cases(name) if c.concept == CONCEPT):
            row = measure_case(pipe, name, case, bank, count)
            table.setdefault(name, {})[case.by or "prompt"] = row
            print(name, case.by, json.dumps(row["stages"]), json.dumps(row["cost"]), flush=True)
    return table


def draw(table: Table, path: Path) -> None:
    """A line per pipeline and case: curves into all and into located patches, two heat maps, localisation."""
    from matplotlib.figure import Figure

    rows = [(name, case, row) for name, found in table.items() for case, row in found.items()]
    figure = Figure(figsize=(17, 2.6 * len(rows)), layout="constrained")
    lines = figure.subplots(len(rows), 5)
    for line, (name, case, row) in zip(lines, rows, strict=True):
        for axis, into in zip(line[:2], ("output", "located"), strict=True):
            for source in ("text", "output", "reference"):
                _curve(axis, row["directions"].get(f"{source} to {into}"), source)
            axis.set(title=f"{into} patches read", ylim=(0, 1))
        line[0].set_ylabel(f"{name}\nweapon by {case}", fontsize=11)
        for axis, source in zip(line[2:4], ("text", "reference" if _has(row, "reference") else "output"), strict=True):
            shown = axis.imshow(
                np.array(row["directions"][f"{source} to output"]["by_step_and_block"]).T, aspect="auto", vmin=0,
                interpolation="nearest",
            )  # fmt: skip
            figure.colorbar(shown, ax=axis)
            axis.set(title=f"{source} to output")
            axis.set_yticks(range(len(row["blocks"])), [short(block) for block in row["blocks"]], fontsize=7)
        for block in map(short, row["blocks"]):
            (drawn,) = line[4].plot(row["localisation"]["contrast"][block]["auroc"], label=block)
            line[4].plot(row["localisation"]["anchor"][block]["auroc"], color=drawn.get_color(), ls="--", lw=0.8)
        line[4].set(title="AUROC (anchor dashed)", ylim=(0, 1.02))
        line[4].axhline(0.5, color="grey", lw=0.7, ls=":")
        line[4].legend(fontsize=6, loc="lower left", ncols=2)
        for axis in line:
            axis.set_xlabel("step")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.title.set_fontsize(8)
    edited = next((i for i, row in enumerate(rows) if _has(row[2], "reference")), 0)
    lines[edited][0].legend(fontsize=8)
    figure.savefig(path, dpi=75, pil_kwargs={"quality": 90, "method": 6})


def _curve(axis: Any, line: Row | None, source: str) -> None:
    if line is None:
        return
    axis.plot(line["mean"], color=COLOURS[source], label=source)
    axis.fill_between(range(len(line["mean"])), line["low"], line["high"], color=COLOURS[source], alpha=0.2, lw=0)
    if line["boundary"]["step"] is not None:
        axis.axvline(line["boundary"]["step"], color=COLOURS[source], ls=":", lw=1)


def _has(row: Row, role: str) -> bool:
    return f"{role} to output" in row["directions"]


def ends(line: Row, which: str = "mean") -> str:
    return f"{line[which][0]:.2f} to {line[which][-1]:.2f}"


def verdict(stage: Row) -> str:
    return {True: "**seen**", False: "not seen", None: "none"}[stage["seen"]]


def by_kind(row: Row, direction: str, kind: str) -> float | None:
    """Mean share of a flow over the blocks of a kind ("double", "single") and all steps; None where there are none."""
    table = np.array(row["directions"][direction]["by_step_and_block"])
    chosen = [i for i, block in enumerate(row["blocks"]) if short(block).startswith(kind)]
    return float(table[:, chosen].mean()) if chosen else None


def half(row: Row, direction: str, kind: str) -> str:
    mean = by_kind(row, direction, kind)
    return "none" if mean is None else f"{mean:.2f}"


def blocks_with_boundary(row: Row, direction: str) -> str:
    steps = row["directions"][direction]["boundary_by_block"]
    found = [f"{short(b)} at {s}" for b, s in zip(row["blocks"], steps, strict=True) if s is not None]
    return ", ".join(found) or "no block"


def stage_lines(name: str, case: str, row: Row) -> list[str]:
    """The rule's verdicts for one pipeline and case, in words."""
    lines = [f"### {name}: weapon by the {case} ({row['images_with_concept']} of {row['images']} images show it)", ""]
    for stage in row["stages"]["output"]:
        whole, located = row["stages"]["output"][stage], row["stages"]["located"][stage]
        if whole["seen"] is None:
            continue
        lines.append(f"- {stage}: {verdict(whole)} over the whole picture: {whole['why']}.")
        lines.append(f"  In located patches {verdict(located)}: {located['why']}.")
    lines.append(f"- Blocks in which text to output has a boundary: {blocks_with_boundary(row, 'text to output')}.")
    if _has(row, "reference"):
        lines.append(f"  Reference to output: {blocks_with_boundary(row, 'reference to output')}.")
    lines.append("")
    return lines


def best(found: Mapping[str, Row], step: int) -> tuple[str, float]:
    return max(((block, line["auroc"][step]) for block, line in found.items()), key=lambda pair: pair[1])


def auroc_cells(row: Row, detector: str) -> list[str]:
    found = row["localisation"][detector]
    worst = min((line["auroc"][0], block) for block, line in found.items())
    return [
        "{1:.2f} ({0})".format(*best(found, 0)), "{1:.2f} ({0})".format(*best(found, -1)),
        f"{worst[0]:.2f} ({worst[1]})",
        f"{max(line['auroc'][-1] - line['auroc'][0] for line in found.values()):+.2f}",
    ]  # fmt: skip


def page(results: Row) -> str:
    table: Table = results["pipelines"]
    rows = [(name, case, row) for name, found in table.items() for case, row in found.items()]

    def cells(*values: object) -> str:
        return "| " + " | ".join(map(str, values)) + " |"

    def titled(*names: str) -> list[str]:
        return [cells("pipeline, weapon by", *names), "|---" * (len(names) + 1) + "|"]

    lines = [
        "# What flows where in the zoo",
        "",
        "Written by `tools/benchmarks/flows.py` from `figures/flows.json`. Do not edit.",
        "",
        f"{results['count']} held-out tasks a line, in a drawing style that no anchor saw. Flows are shares of "
        'attention, mean over heads, blocks and images, in the conditional pass. "Text to output" is what output queries '
        "pay to text keys: information moves from the keys into the queries (the paper's formula writes the reader first, "
        'its words the source). "Located" patches are those in which the judge sees the weapon.',
        "",
        "![Flows in all pipelines](figures/flows.webp)",
        "",
        "Curves: 95% bootstrap bands over images; a dotted line is a stage boundary. The rules for boundaries and stages, "
        "and what counts as none, are those of `uvr_analysis.boundary` and `stages_of`. Their thresholds were set before "
        "any curve was seen; that a start-up ends in the first half of the run was added after a trial on eight other "
        "tasks a line.",
        "",
        "## Reading",
        "",
        *reading(rows),
        "",
        "## Stages, by rule",
        "",
        *titled("start-up", "amplification", "interference", "in located patches"),
        *(
            cells(
                f"{name}, {case}", *(verdict(s) for s in row["stages"]["output"].values()),
                ", ".join(verdict(s) for s in row["stages"]["located"].values()),
            )
            for name, case, row in rows
        ),
        "",
        "## Shares, first step to last",
        "",
        *titled("text to output", "output to output", "reference to output", "text to located", "reference to located"),
        *(
            cells(
                f"{name}, {case}",
                *(
                    ends(row["directions"][d]) if d in row["directions"] else "none"
                    for d in ("text to output", "output to output", "reference to output", "text to located",
                              "reference to located")
                ),
            )
            for name, case, row in rows
        ),
        "",
        "Attention of output patches per token, in units of uniform attention over all tokens (1 = no preference); and per "
        "located patch in units of attention per output patch, by the rest of the picture and by the located patches:",
        "",
        *titled("text", "output", "reference", "rest reads located", "located reads located"),
        *(
            cells(
                f"{name}, {case}",
                *(
                    ends(row["directions"][f"{s} to output"], "lift") if _has(row, s) else "none"
                    for s in ("text", "output", "reference")
                ),
                *(f"{row['spread'][r][0]:.2f} to {row['spread'][r][-1]:.2f}" for r in ("rest", "located")),
            )
            for name, case, row in rows
        ),
        "",
        "## Double and single stream: mean over blocks of a kind and all steps",
        "",
        *titled("text to output, double", "single", "output to text, double", "single"),
        *(
            cells(
                f"{name}, {case}",
                *(half(row, d, kind) for d in ("text to output", "output to text") for kind in ("double", "single")),
            )
            for name, case, row in rows
        ),
        "",
        "## Localisation: patch AUROC of a bank of every block",
        "",
        f"Collected from {COLLECTED} training-split tasks in the other style; not the shipped, calibrated banks. In "
        "brackets the block. Gain: the largest of any block from the first step to the last.",
    ]  # fmt: skip
    for detector in DETECTORS:
        lines += [
            "",
            f"`{detector}`:",
            "",
            *titled("best at step 0", "best at the last step", "worst at step 0", "gain"),
            *(cells(f"{name}, {case}", *auroc_cells(row, detector)) for name, case, row in rows),
        ]
    lines += [
        "",
        "## Cost",
        "",
        f"Median and range of {PAIRS} pairs, stock run and run with every flow of every block and step, "
        f"{results['count']} images at once; {results['threads']} thread(s) of a CPU, shared with other work.",
        "",
        *titled("time over stock", "range", "images bitwise stock"),
        *(
            cells(f"{name}, {case}", f"{c['ratio']:.2f}", "{:.2f} to {:.2f}".format(*c["range"]),
                  f"{c['images_bitwise_stock']} of {c['images']}")
            for name, case, row in rows for c in [row["cost"]]
        ),
        "",
        "## Every verdict with its numbers",
        "",
    ]  # fmt: skip
    for name, case, row in rows:
        lines += stage_lines(name, case, row)
    return "\n".join(lines).rstrip() + "\n"


def reading(rows: Sequence[tuple[str, str, Row]]) -> list[str]:
    """What is seen and what is not, said by rule from the numbers."""
    return [start_up(rows), *amplification(rows), *interference(rows), *blocks(rows), *localised(rows), LIMITS]


LIMITS = (
    "- **What this cannot say.** Shares of attention are not what is moved: values and gates are left out. These are models "
    "of 6 blocks, 64 patches and 20 steps, whose captions name place, object and background and nothing else; a model that "
    "has to find its composition may well have the stages that these do not show. `uvr analyze MODEL` draws the same for it."
)


def span(values: Sequence[float], form: str = "{:.2f}") -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _seen(rows: Sequence[tuple[str, str, Row]], stage: str, into: str) -> list[str]:
    return [f"{name} by the {case}" for name, case, row in rows if row["stages"][into][stage]["seen"]]


def _counted(found: Sequence[str], of: int) -> str:
    return f"seen in {len(found)} of {of}" + (f" ({', '.join(found)})" if found else "")


def _falls(rows: Sequence[tuple[str, str, Row]], direction: str) -> list[float]:
    return [abs(row["directions"][direction]["boundary"]["change"]) for _, _, row in rows]


def _abrupt(rows: Sequence[tuple[str, str, Row]], direction: str) -> list[float]:
    return [row["directions"][direction]["boundary"]["abrupt"] for _, _, row in rows]


def _first(rows: Sequence[tuple[str, str, Row]], direction: str) -> list[float]:
    return [row["directions"][direction]["mean"][0] for _, _, row in rows]


def start_up(rows: Sequence[tuple[str, str, Row]]) -> str:
    down = all(row["directions"]["text to output"]["boundary"]["change"] < 0 for _, _, row in rows)
    leads = {
        into: [
            name for name, _, row in rows
            if row["directions"][f"text to {into}"]["mean"][0] > row["directions"][f"output to {into}"]["mean"][0]
        ]
        for into in ("output", "located")
    }  # fmt: skip
    return (
        f"- **Start-up: {_counted(_seen(rows, 'start-up', 'output'), len(rows))}, in located patches "
        f"{_counted(_seen(rows, 'start-up', 'located'), len(rows))}.** "
        + ("Text to output falls everywhere, as the paper leads one to expect, " if down else "Text to output changes ")
        + f"by {span(_falls(rows, 'text to output'), '{:.0%}')}. The fastest quarter of the steps around the middle of the "
        f"change has {span(_abrupt(rows, 'text to output'), '{:.0%}')} of it, where a straight line has 26% and a stage "
        f"more than 50%. Nor does text lead at the start: at step 0 it gets {span(_first(rows, 'text to output'))} of the "
        f"attention of output patches and output {span(_first(rows, 'output to output'))}; text is ahead in "
        f"{len(leads['output'])} of {len(rows)} lines, in located patches in {len(leads['located'])}"
        + (f" ({', '.join(leads['located'])})." if leads["located"] else ".")
    )


def amplification(rows: Sequence[tuple[str, str, Row]]) -> list[str]:
    up = all(row["directions"]["output to output"]["boundary"]["change"] > 0 for _, _, row in rows)
    rest = [value for _, _, row in rows for value in row["spread"]["rest"]]
    own = [value for _, _, row in rows for value in row["spread"]["located"]]
    falling = sum(row["spread"]["rest"][-1] < row["spread"]["rest"][0] for _, _, row in rows)
    closing = sum(row["spread"]["located"][-1] > row["spread"]["located"][0] for _, _, row in rows)
    return [
        f"- **Amplification: {_counted(_seen(rows, 'amplification', 'output'), len(rows))}, in located patches "
        f"{_counted(_seen(rows, 'amplification', 'located'), len(rows))}.** Output to output "
        + ("rises everywhere" if up else "changes")
        + f" by {span(_falls(rows, 'output to output'), '{:.0%}')}, with no step at which it takes over.",
        "  Does it spread what is unsafe? "
        + ("Not by attention: the" if max(rest) < 1 else "The")
        + f" rest of the picture pays a located patch {span(rest)} of what it pays an output patch, falling over the run in "
        f"{falling} of {len(rows)} lines. Located patches read one another {span(own)} times as much as an output patch, "
        f"rising in {closing} of {len(rows)}: the object is refined by itself.",
    ]


def interference(rows: Sequence[tuple[str, str, Row]]) -> list[str]:
    editing = [line for line in rows if _has(line[2], "reference")]
    if not editing:
        return []
    first = {
        by: [row["directions"]["reference to located"]["mean"][0] for _, case, row in editing if case == by]
        for by in ("source", "instruction")
    }
    last = [row["directions"]["reference to output"]["mean"][-1] for _, _, row in editing]
    close = [
        f"{name} by the {case}: {row['stages']['output']['interference']['why']}"
        for name, case, row in editing if not row["stages"]["output"]["interference"]["seen"]
    ]  # fmt: skip
    lines = [
        f"- **Interference: {_counted(_seen(editing, 'interference', 'output'), len(editing))}, in located patches "
        f"{_counted(_seen(editing, 'interference', 'located'), len(editing))}.** The source stays in the picture to the "
        f"end, and is not constant: reference to output falls by {span(_falls(editing, 'reference to output'), '{:.0%}')}, "
        f"to {span(last)}.",
        "  It does bring in what it shows: patches of a weapon that the source shows read the source "
        f"{span(first['source'])} at step 0, those of a weapon that the instruction asks for {span(first['instruction'])}.",
    ]
    return lines + ([f"  Where the rule says no: {'; '.join(close)}."] if close else [])


def blocks(rows: Sequence[tuple[str, str, Row]]) -> list[str]:
    top = sum(
        int(np.array(row["directions"]["text to output"]["by_step_and_block"]).mean(0).argmax()) == 0
        for _, _, row in rows
    )
    lines = [
        "- **Position of the block.** Text to output is largest in the first block in "
        f"{top} of {len(rows)} lines, averaged over steps."
    ]
    both = [row for _, _, row in rows if by_kind(row, "text to output", "single") is not None]
    if both:
        double, single = ([by_kind(row, "text to output", kind) for row in both] for kind in ("double", "single"))
        more = sum(d > s for d, s in zip(double, single, strict=True))
        lines.append(
            f"  That double-stream blocks mix within a modality and single-stream blocks across is "
            f"{'not seen' if more == len(both) else 'seen' if more == 0 else 'mixed'}: output patches pay text "
            f"{span(double)} in double-stream and {span(single)} in single-stream blocks."
        )
    return lines


def localised(rows: Sequence[tuple[str, str, Row]]) -> list[str]:
    def best_of(detector: str, step: int) -> list[float]:
        return [best(row["localisation"][detector], step)[1] for _, _, row in rows]

    flux = [row for _, _, row in rows if by_kind(row, "text to output", "single") is not None]
    singles = {
        detector: sum(best(row["localisation"][detector], 0)[0].startswith("single") for row in flux)
        for detector in DETECTORS
    }
    gain = max(last - first for first, last in zip(best_of("contrast", 0), best_of("contrast", -1), strict=True))
    return [
        f"- **Localisation {'has no start-up either' if gain < 0.1 else 'improves over the run'}.** The best block's AUROC is {span(best_of('contrast', 0))} at step 0 and "
        f"{span(best_of('contrast', -1))} at the last (`contrast`); {span(best_of('anchor', 0))} and "
        f"{span(best_of('anchor', -1))} for the paper's `anchor`. Of the {len(flux)} lines of models that have both kinds of "
        f"block, the best at step 0 is a single-stream one in {singles['contrast']} (`contrast`) and {singles['anchor']} "
        "(`anchor`).",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--from", dest="given", type=Path, help="Draw and write the page from this JSON instead.")
    arguments = parser.parse_args()
    if arguments.given:
        results = json.loads(arguments.given.read_text())
    else:
        results = {
            "count": arguments.count, "first_seed": FIRST_SEED, "threads": torch.get_num_threads(),
            "versions": versions(), "pipelines": measure(arguments.count),
        }  # fmt: skip
        (arguments.out / "figures/flows.json").write_text(json.dumps(results) + "\n")
    draw(results["pipelines"], arguments.out / "figures/flows.webp")
    (arguments.out / "flows.md").write_text(page(results))


if __name__ == "__main__":
    main()
