"""Every figure of docs/results.md: one evaluation per zoo pipeline, then the page.

    python tools/benchmarks/results.py --out docs [--count 16] [--benign 32] [--pipelines flux,sd3]

Prompt sets are those of `uvr zoo prompts` (held out, drawing styles that the anchors never saw), evaluated under
policies, controls, ablations and every baseline, and packed into results/NAME (config, summary, rows, figure; no
pictures). A run that was cut goes on. `--work` is where the pictures stay.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from pathlib import Path

import uvr_zoo
from uvr_core.cli.progress import stages
from uvr_core.files import finite
from uvr_evaluation import evaluate, pages
from uvr_evaluation.rows import read_rows
from uvr_zoo import prompt_sets
from uvr_zoo.tasks import settings

FIRST = 830_000  # no other script draws these scenes
CONCEPTS = ("weapon", "skull")
BASELINES = ("blocklist", "negative-prompt", "sld", "concept-attention", "uni-adavd", "output-filter")


def measure(name: str, work: Path, count: int, benign: int, batch: int) -> Path:
    prompts, out = work / name / "prompts", work / name / "run"
    if not (prompts / "prompts.jsonl").is_file():
        prompts.mkdir(parents=True, exist_ok=True)
        prompt_sets.write(name, prompts, CONCEPTS, count, benign, FIRST)
    with stages() as show:
        evaluate(
            lambda: uvr_zoo.load(name),
            prompts / "prompts.jsonl",
            out,
            judges=("zoo", "zoo-background"),
            concepts=[f"{name}-{concept}" for concept in CONCEPTS],
            policies=("selective", "uvr", "block"),
            controls=("oracle", "random", "observe"),
            without=("ring",),
            baselines=BASELINES,
            call=settings(name),
            batch=batch,
            facts={"model": f"zoo:{name}", "settings": {"call": settings(name), "batch": batch}},
            progress=show,
        )
    return out


def pack(run: Path, into: Path) -> None:
    """What a reader needs to count again: config, summary, rows and the figure; no pictures."""
    into.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "summary.json", "pareto.png"):
        shutil.copyfile(run / file, into / file)
    lines = "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in read_rows(run))
    (into / "rows-00000.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("out/results"))
    parser.add_argument("--count", type=int, default=16, help="tasks per concept and way in")
    parser.add_argument("--benign", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pipelines", default=",".join(uvr_zoo.names()))
    arguments = parser.parse_args()
    for name in arguments.pipelines.split(","):
        run = measure(name, arguments.work, arguments.count, arguments.benign, arguments.batch)
        pack(run, arguments.out / "results" / name)
    folders = [arguments.out / "results" / name for name in uvr_zoo.names()]
    (arguments.out / "results.md").write_text(pages.page([f for f in folders if f.is_dir()]), "utf-8")


if __name__ == "__main__":
    main()
