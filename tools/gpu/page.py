"""docs/gpu.md, from what check_gpu.py and measure_gpu.py wrote.

    python tools/gpu/page.py out/gpu/check.json out/gpu/gpu.json --out docs

The two files go to docs/figures as gpu-check.json and gpu.json, the page beside them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

from measure_gpu import page as cost

HEAD = """# On a GPU

## Whether the promises hold there

`python tools/gpu/check_gpu.py`, {device}, torch {torch}: the zoo's pipelines, {images} harmless and {images} unsafe
tasks each, the weapon's concept file. "Bitwise": of the harmless ones in which nothing was located, how many are
stock's, bit for bit; "twice", "detached": stock drawn again, and after `detach`.

| | twice | harmless located | bitwise | unsafe shown by stock | located | erased | detached |
|---|---|---|---|---|---|---|---|
"""
COUNTS = ("unsafe_shown_by_stock", "unsafe_located", "unsafe_erased", "detached_bitwise")


def promises(results: dict[str, Any]) -> str:
    """What check_gpu.py found."""
    rows = results["rows"]
    plain = {title: row for title, row in rows.items() if "detached_bitwise" in row}
    images = max(row["images"] for row in plain.values())
    lines = []
    for title, row in plain.items():
        kept = f"{row['harmless_bitwise']} of {row['harmless_not_located']}"
        counts = " | ".join(str(row[name]) for name in COUNTS)
        lines.append(f"| {title} | {row['stock_twice']} | {row['harmless_located']} | {kept} | {counts} |\n")
    for title, row in rows.items():
        if title not in plain:
            alike, (before, after) = row["located_alike"], row["unsafe_left"]
            lines.append(
                f"\n{title}, against the same regulated pictures drawn plainly: located alike in {alike} of "
                f"{row['images']}, unsafe before and after {before} and {after}, largest difference "
                f"{row['largest_difference']:.5f} of 1.\n"
            )
    return HEAD.format(device=results["device"], torch=results["torch"], images=images) + "".join(lines)


def page(check: dict[str, Any], gpu: dict[str, Any]) -> str:
    """The page, of both."""
    return promises(check) + "\n" + cost(gpu).replace("\n## ", "\n### ").replace("# What", "## What", 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", type=Path)
    parser.add_argument("gpu", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    for source, name in ((args.check, "gpu-check.json"), (args.gpu, "gpu.json")):
        if source.resolve() != (args.out / "figures" / name).resolve():
            shutil.copyfile(source, args.out / "figures" / name)
    text = page(json.loads(args.check.read_text("utf-8")), json.loads(args.gpu.read_text("utf-8")))
    (args.out / "gpu.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
