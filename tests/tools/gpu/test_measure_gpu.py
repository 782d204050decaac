"""The script for a GPU runs from end to end on the CPU, at a small size, and its page says that no more is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "tools" / "gpu" / "measure_gpu.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False)


def test_a_dry_run_writes_one_json_and_one_page(tmp_path: Path) -> None:
    done = run("--dry-run", "--models", "kontext,qwen-image", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "gpu.json").read_text())
    variants = ("stock", "idle", "uvr", "selective", "selective, tokens known")
    for table in results["models"].values():
        assert [name for name, row in table.items() if isinstance(row, dict)] == [
            *variants, *(f"compiled {name}" for name in variants),
        ]  # fmt: skip
        assert table["selective"]["kernels"] > table["uvr"]["kernels"] > table["idle"]["kernels"]
        assert table["selective, tokens known"]["kernels"] < table["selective"]["kernels"]
        assert table["stock"]["host_syncs"] < table["idle"]["host_syncs"]
    page = (tmp_path / "gpu.md").read_text()
    assert "A dry run" in page
    assert "| compiled selective |" in page


def test_what_the_time_does_not_allow_is_named(tmp_path: Path) -> None:
    assert run("--dry-run", "--models", "flux", "--minutes", "-1", "--out", str(tmp_path)).returncode == 0
    assert "Left out for time: flux, flux, compiled." in (tmp_path / "gpu.md").read_text()
