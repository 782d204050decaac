"""diffusers' own fast tests of the pipelines and models that UVR regulates, with a regulator attached to every call.

    python downstream/diffusers_tests.py CHECKOUT [--out FOLDER] [tests/... of the checkout]

CHECKOUT is a clone of diffusers at a release near the one installed (the tests run against the installed one). They
run three times: stock; observed (attached without a concept); idle (with a concept of which nothing is located). A call
must then give stock's result bit for bit, be refused by name, or fail as stock fails; where a step cache is on and a
concept is looked for, the cache is held back and the result another. Exit code 1 if any does anything else.
No network: what the tests would take from the Hub is built from configurations (stand_ins.py).
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TESTS = (
    "tests/pipelines/flux",
    "tests/pipelines/qwenimage",
    "tests/pipelines/stable_diffusion_3",
    "tests/models/transformers/test_models_transformer_flux.py",
    "tests/models/transformers/test_models_transformer_qwenimage.py",
    "tests/models/transformers/test_models_transformer_sd3.py",
)
MODES = {"observe": "observed", "idle": "idle, nothing located"}
BITWISE, REFUSED, AS_STOCK, ELSE = "bitwise stock", "refused by name", "fails as stock fails", "anything else"
HELD = (
    "its cache held back"  # while a concept is looked for; tests/compatibility/test_caches.py shows what it gives then
)
NO_CALL, SKIPPED = "calls no regulated model", "skipped by diffusers"
Record = Mapping[str, Any]


def run(checkout: Path, tests: Iterable[str], mode: str, out: Path, cache: Path) -> dict[str, Record]:
    """One session of pytest; what it recorded, by test."""
    record = out / f"{mode}.jsonl"
    record.unlink(missing_ok=True)
    environment = {
        **os.environ, "UVR_RECORD": str(record), "UVR_ATTACH": mode, "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "DIFFUSERS_TEST_DEVICE": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-p", "recorder", "-p", "no:cacheprovider", "--tb=line", *tests]
    with (out / f"{mode}.log").open("w") as log:
        done = subprocess.run(command, cwd=checkout, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode not in (0, 1):  # of 1, tests that failed, the records tell
        raise SystemExit(f"the tests did not run (are `parameterized` and `requests-mock` installed?); see {log.name}")
    return {line["test"]: line for line in map(json.loads, record.read_text().splitlines())}


def of_call(stock: list[str], attached: list[str]) -> str:
    """What became of one call."""
    if attached[1] == "refused":
        return REFUSED
    if attached == stock:
        return BITWISE if stock[1] == "gave" else AS_STOCK
    held = "cache" in attached[3:] and stock[:2] == attached[:2] == [stock[0], "gave"]
    return HELD if held else ELSE


def of_test(stock: Record, attached: Record) -> str:
    """What became of one test."""
    pairs = list(zip(stock["calls"], attached["calls"], strict=False))
    outcomes = {of_call(*pair) for pair in pairs}
    if ELSE in outcomes:
        return ELSE
    if REFUSED in outcomes or attached["refused"]:
        return REFUSED
    if attached["outcome"] != stock["outcome"] or len(attached["calls"]) != len(stock["calls"]):
        return ELSE
    if stock["outcome"] != "passed":
        return SKIPPED if stock["outcome"] == "skipped" else AS_STOCK
    return HELD if HELD in outcomes else BITWISE if pairs else NO_CALL


def reason(error: str) -> str:
    """An error without what differs between models and runs."""
    error = re.sub(r"[\w.]*(transformer_blocks|attn)[\w.]*", "TAP", error)
    said, on, names = re.sub(r"\d+(\.\d+)?", "N", error).partition("On the model: ")
    return f"{said[:90]} ... {on}{names}"


def summary(stock: Mapping[str, Record], attached: Mapping[str, Record]) -> tuple[list[str], int]:
    """Lines of text, and how many tests or calls did anything else."""
    tests: collections.Counter[str] = collections.Counter()
    made: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    strange: list[str] = []
    for name, before in stock.items():
        after = attached.get(name, {"outcome": "not run", "error": "", "refused": False, "calls": []})
        verdict = of_test(before, after)
        tests[verdict] += 1
        if verdict == ELSE:
            strange.append(f"    {name}: {before['outcome']} -> {after['outcome']} {after['error']}")
        for pair in zip(before["calls"], after["calls"], strict=False):
            made[of_call(*pair)] += 1
            if of_call(*pair) == REFUSED:
                reasons[reason(pair[1][2])] += 1
    rows = (BITWISE, HELD, REFUSED, AS_STOCK, ELSE, NO_CALL, SKIPPED)
    lines = [f"  {row:26} {tests[row]:5} tests" + (f" {made[row]:6} calls" if row in rows[:5] else "") for row in rows]
    lines += [f"  refused {count:4} calls: {text}" for text, count in reasons.most_common()]
    return lines + strange, tests[ELSE] + made[ELSE]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("tests", nargs="*", default=TESTS, help="of the checkout; default: %(default)s")
    parser.add_argument("--out", type=Path, help="where records and logs stay")
    options = parser.parse_intermixed_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="uvr-downstream-"))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        from stand_ins import build

        cache = build(Path(folder))
        records = {mode: run(options.checkout, options.tests, mode, out, cache) for mode in ("nothing", *MODES)}
    failures = 0
    for mode, title in MODES.items():
        lines, strange = summary(records["nothing"], records[mode])
        failures += strange
        print(title, *lines, sep="\n")
    print(f"records: {out}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
