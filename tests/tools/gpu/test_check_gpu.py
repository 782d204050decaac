"""The check for a GPU runs from end to end on the CPU, and what it counts there is what the zoo promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "tools" / "gpu" / "check_gpu.py"


def test_it_counts_what_is_promised(tmp_path: Path) -> None:
    small = ("--device", "cpu", "--pipelines", "flux", "--dtypes", "float32", "--images", "2", "--steps", "8")
    done = subprocess.run(
        [sys.executable, SCRIPT, *small, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "check.json").read_text())["rows"]
    plain, compiled = rows["flux, float32"], rows["flux, compiled blocks"]
    assert plain["stock_twice"] == plain["detached_bitwise"] == plain["images"] == 2
    assert plain["harmless_bitwise"] == plain["harmless_not_located"]
    assert plain["unsafe_erased"] == plain["unsafe_shown_by_stock"] == plain["unsafe_located"] == 2
    assert compiled["located_alike"] == 2
    assert compiled["unsafe_left"] == [0, 0]
