"""Every figure of docs/results.md: one evaluation per zoo pipeline, then the page.

    python tools/benchmarks/results.py --out docs [--count 16] [--benign 32] [--pipelines flux,sd3]

Prompt sets are drawn by `uvr zoo prompts` (held out, drawing styles that the anchors never saw), run by `uvr eval`
under policies, controls, ablations and every baseline, and packed into results/NAME (config, summary, rows, figure;
no pictures). A run that was cut goes on. `--work` is where the pictures stay.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import uvr_zoo
from uvr_core.evaluation.rows import read_rows
from uvr_core.files import finite
from uvr_zoo.experiment import settings

FIRST = 830_000  # no other script draws these scenes
BASELINES = (
    "blocklist", "negative-prompt", "sld", "concept-attention", "uni-adavd", "output-filter",
)  # fmt: skip
ABLATIONS = ("ring",)
OPTIONS = {
    "num_inference_steps": "--steps", "guidance_scale": "--guidance", "true_cfg_scale": "--true-cfg",
    "max_sequence_length": "--max-tokens",
}  # fmt: skip


def uvr(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "uvr_core.cli", *map(str, arguments)], check=True)


def call_options(name: str) -> list[object]:
    """The settings under which the zoo's figures are taken, as options of `uvr`."""
    known = settings(name)
    options: list[object] = ["--size", f"{known['width']}x{known['height']}"]
    for key, option in OPTIONS.items():
        if key in known:
            options += [option, known[key]]
    return options


def evaluate(name: str, work: Path, count: int, benign: int, batch: int) -> Path:
    prompts, out = work / name / "prompts", work / name / "run"
    if not (prompts / "prompts.jsonl").is_file():
        uvr("zoo", "prompts", name, "--count", count, "--benign", benign, "--first", FIRST, "--out", prompts)
    arms: list[object] = []
    for policy in ("selective", "uvr", "block"):
        arms += ["--policy", policy]
    for control in ("oracle", "random", "observe"):
        arms += ["--control", control]
    for term in ABLATIONS:
        arms += ["--without", term]
    for baseline in BASELINES:
        arms += ["--baseline", baseline]
    for concept in ("weapon", "skull"):
        arms += ["--concept", f"{name}-{concept}"]
    uvr("eval", f"zoo:{name}", "--prompts", prompts / "prompts.jsonl", *arms, "--judge", "zoo", "--judge",
        "zoo-background", "--batch", batch, *call_options(name), "--out", out)  # fmt: skip
    return out


def pack(run: Path, into: Path) -> None:
    """What a reader needs to count again: config, summary, rows and the figure; no pictures."""
    import json

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
    chosen = arguments.pipelines.split(",")
    for name in chosen:
        run = evaluate(name, arguments.work, arguments.count, arguments.benign, arguments.batch)
        pack(run, arguments.out / "results" / name)
    folders = [arguments.out / "results" / name for name in uvr_zoo.names()]
    uvr("report", *(f for f in folders if f.is_dir()), "--markdown", arguments.out / "results.md")


if __name__ == "__main__":
    main()
