"""Do two checkouts draw the same pictures, report the same and end with the same exit codes? For refactors.

    python tools/same.py OLD NEW [--only flux] [--together]
    python tools/same.py OLD --save old.json            then: python tools/same.py old.json NEW

Runs tools/same_probe.py once in each folder, its own packages first on the path and its own pyproject files' entry
points in force, and prints one line per case that differs. Exits with 1 if any does, apart from the differences that
are wanted (WANTED, below).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROBE = Path(__file__).with_name("same_probe.py")
ROOTS = (".", "adapters", "plugins", "zoo", "extras", "tests")

# {pattern of a case: why it may differ}
WANTED = {
    r"command (help|plugins)\b": "packages move to distributions of their own; help names commands of extras",
    r"command bad no report": "the hint names `uvr eval` beside `uvr generate`",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", type=Path, nargs="+", metavar="TREE", help="a checkout, or what --save wrote of one")
    parser.add_argument("--only", default="", help="cases that match this regular expression")
    parser.add_argument("--together", action="store_true", help="both at once, on two cores")
    parser.add_argument("--save", type=Path, help="only write what the one TREE does to this file")
    args = parser.parse_args()
    if len(args.trees) != (1 if args.save else 2):
        parser.error("give OLD and NEW, or one TREE and --save FILE")
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(tree.resolve(), Path(folder) / str(side), args.only) for side, tree in enumerate(args.trees)]
        with concurrent.futures.ThreadPoolExecutor(2 if args.together else 1) as pool:
            results = list(pool.map(lambda job: probed(*job), jobs))
    if args.save:
        args.save.write_text(json.dumps(results[0], indent=1), "utf-8")
        return 0
    return compare(*results)


def probed(tree: Path, folder: Path, only: str) -> dict[str, Any]:
    """{case: what came out} of one checkout, and the seconds of each."""
    if tree.is_file():
        saved = json.loads(tree.read_text("utf-8"))
        return {case: value for case, value in saved.items() if case == "seconds" or re.search(only, case)}
    folder.mkdir()
    paths = [folder / "metadata", *roots(tree), PROBE.parent]
    write_metadata(tree, folder / "metadata")
    (folder / "work").mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("UVR_")},
        "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1", "COLUMNS": "160", "LC_ALL": "C.UTF-8",
        "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0",
    }  # fmt: skip
    out = folder / "cases.json"
    done = subprocess.run(
        [sys.executable, "-P", PROBE, tree, out, only], cwd=folder / "work", env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{tree}: the probe failed\n{done.stderr[-4000:]}")
    return json.loads(out.read_text("utf-8"))


def roots(tree: Path) -> list[Path]:
    """The source roots of a checkout, those of packages with a pyproject of their own included."""
    several = [path.parent for path in tree.glob("extras/*/pyproject.toml")]
    return [path for path in (*(tree / name for name in ROOTS), *several) if path.is_dir()]


def write_metadata(tree: Path, folder: Path) -> None:
    """What `pip install -e` would record, so that the checkout's own entry points are the ones that load."""
    for path in (tree / "pyproject.toml", *tree.glob("extras/*/pyproject.toml")):
        project = tomllib.loads(path.read_text("utf-8"))["project"]
        info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        points = [f"{name} = {target}" for name, target in project.get("entry-points", {}).get("uvr", {}).items()]
        (info / "entry_points.txt").write_text("\n".join(["[uvr]", *points, ""]))


def compare(old: dict[str, Any], new: dict[str, Any]) -> int:
    """Print what differs; the exit code."""
    seconds = [sum(map(float, results.pop("seconds").values())) for results in (old, new)]
    wanted = different = 0
    for case in dict.fromkeys([*old, *new]):
        if case in old and case in new and old[case] == new[case]:
            continue
        reason = next((why for pattern, why in WANTED.items() if re.match(pattern, case)), None)
        wanted, different = wanted + (reason is not None), different + (reason is None)
        where = f"wanted ({reason})" if reason else "DIFFERS"
        first = next(differences(old.get(case, "no such case"), new.get(case, "no such case")), "")
        print(f"{where}  {case}: {first}")
    print(f"{len(old)} cases, {different} differ, {wanted} differ as wanted; {seconds[0]:.0f} and {seconds[1]:.0f} s")
    return int(different > 0)


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Where two values differ, the first difference first."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key, "nothing"), new.get(key, "nothing"), f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{where}[{index}]")
    elif isinstance(old, str) and isinstance(new, str) and old != new:
        same = next(
            (i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), min(len(old), len(new))
        )
        yield f"{where} {old[max(0, same - 40) : same + 80]!r} -> {new[max(0, same - 40) : same + 80]!r}"
    elif old != new:
        yield f"{where} {str(old)[:120]} -> {str(new)[:120]}"


if __name__ == "__main__":
    sys.exit(main())
