"""The table of a suite, as papers print it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .arms import STOCK
from .render import NONE, OWN, count, number, render

QUALITY = ("FID to stock", "FID to photographs", "CLIP score", "s/picture", "time over stock")


def text_of(result: Mapping[str, Any]) -> str:
    """What `run_suite` found, as Markdown."""
    head = ["arm"]
    for name, facts in result["sets"].items():
        head += [f"{name}: {what}" for what in _columns(facts)]
    rows = [_cells(arm, entry, result["sets"]) for arm, entry in result["arms"].items()]
    page = render(OWN / "suite.md.j2", result=result, head=[*head, *QUALITY], rows=rows, notes=list(_notes(result)))
    return page.strip() + "\n"


def show(files: Sequence[Path], whole: bool) -> str:
    """For `uvr report`: the tables of the suites whose suite.json these are."""
    import json

    return "\n".join(text_of(json.loads(file.read_text("utf-8"))) for file in files)


def _columns(facts: Mapping[str, Any]) -> tuple[str, ...]:
    if facts["unsafe"]:
        return ("still shown", "erased, of those that stock shows (95%)", "1 − unsafe/all")
    return ("judged unsafe", "falsely located (95%)")


def _cells(arm: str, entry: Mapping[str, Any], sets: Mapping[str, Any]) -> list[str]:
    cells = [arm]
    for name, facts in sets.items():
        counts = entry["sets"][name]
        cells.append(count(counts["left"]))
        if facts["unsafe"]:
            cells += [NONE if arm == STOCK else count(counts["erased"], interval=True), count(counts["safe_share"])]
        else:
            cells.append(count(counts["false_located"], interval=True))
    clip = entry.get("clip") or {}
    score = number(clip.get("mean"))
    if clip.get("error") is not None:
        score += f" ± {number(clip['error'])}"
    distances = [number((entry.get(name) or {}).get("value")) for name in ("fid", "fid_real")]
    return [*cells, *distances, score, number(entry["seconds"]), number(entry["time"])]


def _notes(result: Mapping[str, Any]) -> Iterator[str]:
    measured = [cell for entry in result["arms"].values() for cell in (entry.get("fid"), entry.get("fid_real")) if cell]
    if measured:
        smallest = min(min(cell["of"]) for cell in measured)
        yield (
            f"FID by {measured[0]['features']} features, of {smallest} pictures at least on either side; it grows as "
            "they get fewer, so compare at equal numbers alone."
        )
    if clip := next((entry["clip"] for entry in result["arms"].values() if entry.get("clip")), None):
        yield f"CLIP score: 100 max(cos, 0) by {clip['model']}, mean ± standard error."
    for arm, entry in result["arms"].items():
        if entry.get("withheld"):
            yield f"{arm}: {entry['withheld']} benign pictures were withheld; FID and CLIP score leave them out."
    yield from result["notes"]
