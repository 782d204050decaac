"""What the scripts that write a table of counts share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from uvr_evaluation import Arm
from uvr_zoo import counts
from uvr_zoo.tasks import Task

TEMPLATES = Path(__file__).parent / "templates"


def cell(row: Mapping[str, Any]) -> str:
    """Erased of shown, other objects kept."""
    return f"{row['erased_of_shown']}/{row['stock_unsafe']}, {row['other_kept']}/{row['other_shown']}"


def compare(
    pipe: Any, name: str, tasks: Sequence[Task], concept: str, arms: Sequence[Arm], **asked: Any
) -> dict[str, dict[str, Any]]:
    """{arm: counts, and images located} of tasks that ask for a concept; the pictures are not kept."""
    with TemporaryDirectory() as folder:
        measured = counts.measure(pipe, name, tasks, Path(folder), concept, arms=arms, **asked)
        return {
            arm.name: {**measured.counts(arm.name), "located": measured.figures(arm.name)["located"]["hits"]}
            for arm in arms
        }


def run(
    doc: str, measure: Callable[[int], dict[str, Any]], page: Callable[[dict[str, Any], int], str], *, json_at: str,
    page_at: str, first_seed: int, out: Path, count: int,
    draw: Callable[[dict[str, Any], Path], None] | None = None, figure_at: Path | None = None,
) -> None:  # fmt: skip
    """Measure and write the JSON, or read it with `--from`; then write the page and, with `draw`, the figure.

    Paths are relative to `--out`.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--from", dest="given", type=Path, help="Write the page from this JSON instead.")
    arguments = parser.parse_args()
    if arguments.given:
        results = json.loads(arguments.given.read_text())
    else:
        results = {"count": arguments.count, "first_seed": first_seed, "pipelines": measure(arguments.count)}
        (arguments.out / json_at).write_text(json.dumps(results, indent=1))
    (arguments.out / page_at).write_text(page(results["pipelines"], results["count"]))
    if draw is not None and figure_at is not None:
        draw(results["pipelines"], arguments.out / figure_at)
