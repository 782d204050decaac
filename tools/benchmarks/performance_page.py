"""docs/performance.md from docs/figures/performance.json: tables, and what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

BARS = {"idle": 1.005, "active": 1.02, "peak": 2.0, "concept": 0.002, "anchors": 0.002, "attach": 0.05}


def bars(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    """(what is asked for, where, what was measured, whether it holds), of the parts that were run."""
    forward = _longest_forward(results)
    if stack := results.get("stack"):
        idle = stack["idle"]
        yield (
            f"idle at most {BARS['idle']} x the forward", f"{idle['tokens']} tokens, {idle['pairs']} pairs",
            _ratio(idle), idle["median"] <= BARS["idle"],
        )  # fmt: skip
        extra = stack["python"]["microseconds_median"] / 1e6
        block = min(row["idle"]["base_seconds"] for row in stack["forward"].values()) / (1 + stack["singles"])
        yield (
            "the same, from Python's time alone", "shortest block measured",
            f"{1e6 * extra:.0f} us of {1e3 * block:.0f} ms", extra / block <= BARS["idle"] - 1,
        )  # fmt: skip
        tokens, rows = max(stack["forward"].items(), key=lambda item: int(item[0]))
        yield (
            f"`uvr` on 10% of the patches at most {BARS['active']} x the forward", f"{tokens} tokens",
            _ratio(rows["uvr 10%"]), rows["uvr 10%"]["median"] <= BARS["active"],
        )  # fmt: skip
        call = stack["attention"][tokens]["uvr 10%"]
        spent = (call["median"] - 1) * call["base_seconds"] * (1 + stack["singles"]) / rows["idle"]["base_seconds"]
        yield (
            "the same, from what the edit adds to the attention calls", "less noise than in whole forwards",
            f"{1 + spent:.3f}", 1 + spent <= BARS["active"],
        )  # fmt: skip
        peaks = {
            f"{title}, {tokens} tokens": row["peak"] for tokens, table in stack["attention"].items()
            for title, row in table.items() if title != "matrix"
        }  # fmt: skip
        worst = max(peaks, key=lambda title: peaks[title])
        yield (
            f"extra peak at most {BARS['peak']:.0f} q", f"worst: {worst}", f"{peaks[worst]:.2f} q",
            peaks[worst] <= BARS["peak"],
        )  # fmt: skip
    if (growth := results.get("growth")) and forward:
        each = (growth["concepts"]["20"]["seconds"] - growth["concepts"]["1"]["seconds"]) / 19
        yield (
            f"a further concept at most +{BARS['concept']:.1%} of the forward", "20 against 1, nothing located",
            f"+{each / forward:.3%}", each / forward <= BARS["concept"],
        )  # fmt: skip
        more = growth["anchors"]["10000"]["seconds"] - growth["anchors"]["1"]["seconds"]
        yield (
            f"flat in anchors (+{BARS['anchors']:.1%} of the forward)", "10,000 against 1", f"{more / forward:+.3%}",
            more / forward <= BARS["anchors"],
        )  # fmt: skip
    if attach := results.get("attach"):
        spent = attach["attach"]["seconds"]
        yield (
            f"attach at most {1e3 * BARS['attach']:.0f} ms", f"{attach['blocks']} blocks", f"{1e3 * spent:.1f} ms",
            spent <= BARS["attach"],
        )  # fmt: skip


def _longest_forward(results: Mapping[str, Any]) -> float | None:
    """Seconds of the stock forward at the longest length."""
    if "stack" not in results:
        return None
    rows = max(results["stack"]["forward"].items(), key=lambda item: int(item[0]))[1]
    return float(rows["idle"]["base_seconds"])


def _ratio(row: Mapping[str, Any]) -> str:
    low, high = row["range"]
    return f"{row['median']:.3f} ({low:.3f} to {high:.3f})"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|", *("| " + " | ".join(r) + " |" for r in rows)]


def page(results: Mapping[str, Any]) -> str:
    """Markdown."""
    where = results["environment"]
    asked = [[f"{what}; {at}", got, "yes" if holds else "**no**"] for what, at, got, holds in bars(results)]
    lines = [
        "# What regulation costs, measured",
        "",
        "Written by `benchmarks/performance.py` from `figures/performance.json`. Do not edit.",
        "",
        f"{where['device']}, {where['dtype']}, {where['threads']} threads; torch {where['torch']}, diffusers "
        f"{where['diffusers']}, Python {where['python']}, uvr {where['uvr']} ({where['git'][:10]}"
        f"{', with changes' if '+' in where['git'] else ''}); {results['minutes']:.0f} minutes."
        + (" A quick run: small sizes, which show that it runs and nothing else." if results["quick"] else ""),
        "",
        "Ratios are to stock within one turn: median (range). q is one query tensor (batch, heads, tokens, head size). "
        "Shares are of the output patches, core and ring together.",
    ]
    if asked:
        lines += ["", "## What is asked for", *_table(["", "measured", "holds"], asked)]
    for name, section in (("stack", _stack), ("growth", _growth), ("zoo", _zoo), ("attach", _attach), ("help", _help)):
        if name in results:
            lines += section(results[name])
    return "\n".join(lines) + "\n"


def _stack(stack: Mapping[str, Any]) -> list[str]:
    tables = stack["attention"]
    titles = list(dict.fromkeys(title for table in tables.values() for title in table))
    head = ["", *(f"{tokens} tokens" for tokens in tables)]
    rows = [[title, *(_ratio(t[title]) if title in t else "" for t in tables.values())] for title in titles]
    lines = ["", "## One attention call of FLUX.1's width", "", *_MATRIX, *_table(head, rows)]
    longest = max(tables, key=int)
    lines += [
        "",
        f"At {longest} tokens ({tables[longest]['idle']['base_seconds']:.2f} s a call), what the edit adds to the "
        "stock call. Kernels are operations that are not views; peak is what it holds at most beside q, k, v and the "
        "output; for the matrix form, the whole call. Of the host syncs one reads the policy's table, which lies on "
        "the host.",
    ]
    lines += _table(
        ["", "rows", "peak, q", "attention calls", "kernels", "host syncs"],
        [
            [title, str(row["rows"]), f"{row['peak']:.2f}"]
            + [str(row.get(k, "")) for k in ("attention_calls", "kernels", "host_syncs")]
            for title, row in tables[longest].items()
        ],
    )
    tokens = next(iter(stack["editing"].values()))["tokens"]
    lines += ["", f"With a reference image of the same size ({tokens} tokens):"]
    lines += _table(["", "ratio", "peak, q"], [[t, _ratio(r), f"{r['peak']:.2f}"] for t, r in stack["editing"].items()])
    tables = stack["forward"]
    titles = [t for t in dict.fromkeys(title for table in tables.values() for title in table) if t != "stock"]
    rows = [[title, *(_ratio(t[title]) if title in t else "" for t in tables.values())] for title in titles]
    times = [f"{table['idle']['base_seconds']:.2f}" for table in tables.values()]
    blocks = f"1 double-stream and {stack['singles']} single-stream block{'s' if stack['singles'] > 1 else ''}"
    lines += ["", f"## Forwards of {blocks} of FLUX.1's width", *_table(head, [["stock, seconds", *times], *rows])]
    peaks = [
        [title, *(f"{t[title]['peak']:.2f}" if "peak" in t.get(title, {}) else "" for t in tables.values())]
        for title in ("stock", *titles)
    ]
    lines += ["", "Peak of a whole forward, in q:", *_table(head, [row for row in peaks if any(row[1:])])]
    idle, python = stack["idle"], stack["python"]
    counts = {k: (idle["stock_counts"][k], idle["idle_counts"][k]) for k in idle["stock_counts"]}
    lines += [
        "",
        f"Idle at {idle['tokens']} tokens, {idle['pairs']} pairs: {_ratio(idle)}, ratio of minima "
        f"{idle['of_minima']:.4f}. Python: {python['microseconds_median']:.0f} us per attention. Stock and idle "
        "forward: "
        + ", ".join(f"{name.replace('_', ' ')} {a} and {b}" for name, (a, b) in counts.items())
        + " (those added lie in the probe block and in reading the arguments).",
    ]
    return lines


_MATRIX = [
    "`matrix` is the released code's form, which holds the whole attention matrix; written anew from its equations."
]


def _growth(growth: Mapping[str, Any]) -> list[str]:
    lines = [
        "",
        "## Growth",
        "",
        f"The probe block at {growth['tokens']} tokens where nothing is located, milliseconds beyond the stock call "
        f"({growth['attention_seconds']:.2f} s):",
    ]
    rows = [
        [f"{count} {kind}"[: None if count != "1" else -1], f"{1e3 * row['seconds']:.1f}"]
        for kind in ("concepts", "anchors")
        for count, row in growth[kind].items()
    ]
    lines += _table(["", "ms"], rows)
    lines += ["", "`uvr` on 10% of the patches by batch, shortest length:"]
    return lines + _table(
        ["batch", "one attention", "peak, q"],
        [[count, _ratio(row), f"{row['peak']:.2f}"] for count, row in growth["batch"].items()],
    )


def _zoo(zoo: Mapping[str, Any]) -> list[str]:
    lines = ["", "## Whole generations of the zoo's pipelines, `selective`", "", *_SMALL]
    return lines + _table(
        ["", "active", "idle", "stock, seconds"],
        [[n, _ratio(r["active"]), _ratio(r["idle"]), f"{r['idle']['base_seconds']:.2f}"] for n, r in zoo.items()],
    )


_SMALL = [
    "2.3 M parameters and 96 tokens or so: the price there is the number of tensor calls, not their size. Active means "
    "that all images show the concept; idle, that it is located in none."
]


def _attach(attach: Mapping[str, Any]) -> list[str]:
    each = ", ".join(f"{name} {1e3 * attach[name]['seconds']:.1f} ms" for name in ("attach", "detach"))
    return ["", "## Attach", "", f"FLUX.1 of {attach['blocks']} blocks, without memory: {each}."]


def _help(taken: Mapping[str, Any]) -> list[str]:
    each = ", ".join(f"`{name}` {row['seconds']:.2f} s" for name, row in taken.items())
    return ["", "## Command line", "", f"{each} (a Python that does nothing)."]
