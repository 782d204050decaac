"""Whole zoo pipeline, regulated against stock, in one run: time (median of pairs) and peak resident memory (Linux).

    python benchmarks/pipeline.py [--repeats 9] [--policy selective]

Prints JSON. Peak memory is VmHWM, reset before each measurement through /proc/self/clear_refs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch

import uvr_core
import uvr_zoo
from uvr_zoo.experiment import generate, scenes_for, settings


def peak_kib() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--policy", default="selective")
    parser.add_argument("--pipeline", default="flux")
    arguments = parser.parse_args()
    pipe, options = uvr_zoo.load(arguments.pipeline), settings(arguments.pipeline)
    bank = uvr_zoo.concepts(arguments.pipeline, "weapon")
    sets = {
        "active": scenes_for(arguments.pipeline, 8, unsafe="weapon", split="heldout", first=700_000),
        "idle": scenes_for(arguments.pipeline, 8, unsafe=False, split="heldout", first=710_000),
    }
    result: dict[str, Any] = {
        "policy": arguments.policy,
        "repeats": arguments.repeats,
        "threads": torch.get_num_threads(),
    }
    for kind, drawn in sets.items():
        ratios, stock_peak, peak = [], [], []
        for turn in range(arguments.repeats + 1):
            seconds = {}
            for regulated in (False, True) if turn % 2 else (True, False):
                attached = uvr_core.attach(pipe, concepts=bank, policy=arguments.policy) if regulated else nullcontext()
                reset_peak()
                start = time.perf_counter()
                with attached:
                    generate(pipe, drawn, options, batch=8)
                seconds[regulated] = time.perf_counter() - start
                (peak if regulated else stock_peak).append(peak_kib())
            if turn:  # the first pair warms up
                ratios.append(seconds[True] / seconds[False])
        result[kind] = {
            "time_ratio_median": statistics.median(ratios),
            "time_ratio_range": [min(ratios), max(ratios)],
            "peak_rss_ratio": statistics.median(peak[1:]) / statistics.median(stock_peak[1:]),
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
