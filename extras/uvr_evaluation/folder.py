"""The result folder: config.json first, which says what is asked; summary and report once every row is there."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uvr_core import UVRError
from uvr_core.cli import output
from uvr_core.files import to_json, write_whole

from .rows import read_rows
from .summary import summarise

CONFIG, SUMMARY = "config.json", "summary.json"


def begin(out: Path, config: Mapping[str, Any], overwrite: bool, processes: int) -> None:
    """Make the folder, or go on in it if it holds the same evaluation.

    Raises:
        UVRError: it holds another one, or something else.
    """
    if overwrite and processes > 1:
        raise UVRError("--overwrite: several processes would delete one another's rows; remove the folder first")
    path = out / CONFIG
    asked = json.loads(to_json(dict(config)))
    if path.is_file() and not overwrite:
        try:
            existing = json.loads(path.read_text("utf-8"))
            same = {key: existing[key] for key in asked}
        except (ValueError, KeyError, TypeError) as error:
            raise UVRError(
                f"{path}: damaged, or of another version ({error}); pass --overwrite to begin anew"
            ) from error
        if differing := [key for key in asked if asked[key] != same[key]]:
            raise UVRError(
                f"{out}: holds an evaluation with other {' and '.join(differing)}; name another folder, or pass "
                "--overwrite to begin anew"
            )
        return
    output.check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for old in [*out.glob("rows-*.jsonl"), out / SUMMARY, out / "report.html"]:
            old.unlink(missing_ok=True)
        shutil.rmtree(out / "images", ignore_errors=True)
    elif any(out.glob("rows-*.jsonl")):
        raise UVRError(f"{out}: holds rows and no {CONFIG}; name another folder, or pass --overwrite to begin anew")
    facts = {"versions": output.versions(), "machine": platform.machine(), "git": output.commit()}
    write_whole(path, to_json({**asked, **facts}) + "\n")


def finish(out: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The summary, written with the report once every row is there: by whichever process is the last."""
    from .pages import write_report

    summary = summarise(read_rows(out), config)
    if not summary["unfinished"]:
        write_whole(out / SUMMARY, to_json(summary) + "\n")
        write_report(out)
    return summary
