"""The demo's figures as docs keeps them, from what `uvr demo` wrote.

    python tools/benchmarks/demo.py out/demo --out docs/figures

demo-five.json, a copy; demo-five.webp, the contact sheet at three quarters of its size; demo-flux.png, the rows of the
first pipeline, in 256 colours.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from PIL import Image

SCALE = 3 / 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    arguments = parser.parse_args()
    results = arguments.demo / "results.json"
    shutil.copyfile(results, arguments.out / "demo-five.json")
    # A case has three rows in the sheet (stock, located, regulated), and one more where there is a source picture.
    rows = [
        sum(4 if "edits_stock" in row else 3 for row in figures["concepts"].values())
        for figures in json.loads(results.read_text())["pipelines"].values()
    ]
    with Image.open(arguments.demo / "contact.png") as sheet:
        width, height = sheet.size
        small = sheet.resize((round(width * SCALE), round(height * SCALE)), Image.Resampling.LANCZOS)
        first = sheet.crop((0, 0, width, height * rows[0] // sum(rows)))
    small.convert("RGB").save(arguments.out / "demo-five.webp", quality=80, method=6)
    first.quantize(256).save(arguments.out / "demo-flux.png", optimize=True)


if __name__ == "__main__":
    main()
