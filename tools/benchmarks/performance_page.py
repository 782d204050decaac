"""docs/performance.md from docs/figures/performance.json: tables, and what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tables import TEMPLATES

from uvr_evaluation.render import ratio, render

BARS = {"idle": 1.005, "active": 1.02, "peak": 2.0, "concept": 0.002, "anchors": 0.002, "attach": 0.05}


Bar = tuple[str, str, str, bool]


def bars(results: Mapping[str, Any]) -> Iterator[Bar]:
    """(what is asked for, where, what was measured, whether it holds), of the parts that were run."""
    if "stack" in results:
        yield from _of_stack(results["stack"])
    if "growth" in results and "stack" in results:
        yield from _of_growth(results["growth"], _longest(results["stack"]["forward"])["idle"]["base_seconds"])
    if attach := results.get("attach"):
        spent = attach["attach"]["seconds"]
        what = f"attach at most {1e3 * BARS['attach']:.0f} ms"
        yield what, f"{attach['blocks']} blocks", f"{1e3 * spent:.1f} ms", spent <= BARS["attach"]


def _longest(tables: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table of the longest length."""
    return tables[max(tables, key=int)]


def _of_stack(stack: Mapping[str, Any]) -> Iterator[Bar]:
    idle, blocks = stack["idle"], 1 + stack["singles"]
    what = f"idle at most {BARS['idle']} x the forward"
    yield what, f"{idle['tokens']} tokens, {idle['pairs']} pairs", ratio(idle), idle["median"] <= BARS["idle"]
    extra = stack["python"]["microseconds_median"] / 1e6
    block = min(row["idle"]["base_seconds"] for row in stack["forward"].values()) / blocks
    got = f"{1e6 * extra:.0f} us of {1e3 * block:.0f} ms"
    yield "the same, from Python's time alone", "shortest block measured", got, extra / block <= BARS["idle"] - 1
    tokens, rows = max(stack["forward"], key=int), _longest(stack["forward"])
    what, active = f"`uvr` on 10% of the patches at most {BARS['active']} x the forward", rows["uvr 10%"]
    yield what, f"{tokens} tokens", ratio(active), active["median"] <= BARS["active"]
    call = stack["attention"][tokens]["uvr 10%"]
    spent = 1 + (call["median"] - 1) * call["base_seconds"] * blocks / rows["idle"]["base_seconds"]
    what = "the same, from what the edit adds to the attention calls"
    yield what, "less noise than in whole forwards", f"{spent:.3f}", spent <= BARS["active"]
    peaks = {
        f"{title}, {tokens} tokens": row["peak"]
        for tokens, table in stack["attention"].items()
        for title, row in table.items()
        if title != "matrix"
    }
    worst = max(peaks, key=lambda title: peaks[title])
    got = f"{peaks[worst]:.2f} q"
    yield f"extra peak at most {BARS['peak']:.0f} q", f"worst: {worst}", got, peaks[worst] <= BARS["peak"]


def _of_growth(growth: Mapping[str, Any], forward: float) -> Iterator[Bar]:
    """`forward`: seconds of the stock forward at the longest length."""
    each = (growth["concepts"]["20"]["seconds"] - growth["concepts"]["1"]["seconds"]) / 19 / forward
    what = f"a further concept at most +{BARS['concept']:.1%} of the forward"
    yield what, "20 against 1, nothing located", f"+{each:.3%}", each <= BARS["concept"]
    more = (growth["anchors"]["10000"]["seconds"] - growth["anchors"]["1"]["seconds"]) / forward
    what = f"flat in anchors (+{BARS['anchors']:.1%} of the forward)"
    yield what, "10,000 against 1", f"{more:+.3%}", more <= BARS["anchors"]


def titles(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The variants that any of the tables has."""
    return list(dict.fromkeys(title for table in tables.values() for title in table))


def peaked(tables: Mapping[str, Mapping[str, Any]], title: str) -> bool:
    return any("peak" in table.get(title, {}) for table in tables.values())


def page(results: Mapping[str, Any]) -> str:
    """Markdown."""
    return render(
        TEMPLATES / "performance.md.j2",
        results=results,
        env=results["environment"],
        bars=list(bars(results)),
        titles=titles,
        peaked=peaked,
    )
