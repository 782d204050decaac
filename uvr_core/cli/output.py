"""What the commands write: all of it or nothing, and checked before the long work."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UVRError

REPORT = "report.json"


def check_file(path: Path) -> Path:
    """Raise UVRError unless a file can be put there; leaves nothing behind."""
    if path.is_dir():
        raise UVRError(f"{path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise UVRError(f"{path.parent}: no such folder to write {path.name} in; make it first")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UVRError(f"{path.parent}: cannot write there: {error.strerror}") from error
    return path


def _open(out: Path) -> tuple[Path, list[Path]]:
    """A staging folder inside `out`, and the folders that were made for it."""
    missing = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out)), missing
    except OSError as error:
        _close(None, missing)
        raise UVRError(f"{out}: cannot write there: {error.strerror}") from error


def _close(stage: Path | None, new: list[Path]) -> None:
    if stage is not None:
        shutil.rmtree(stage, ignore_errors=True)
    for path in new:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def check_folder(out: Path) -> Path:
    """Raise UVRError unless files can be put in that folder, made if need be; leaves nothing behind."""
    _close(*_open(out))
    return out


@contextmanager
def folder(out: Path, *, overwrite: bool = False, report: str = REPORT) -> Iterator[Path]:
    """A staging folder inside `out` whose files move up when the block ends well, the file `report` last.

    If it does not, they vanish, and so do the folders that were made for them.

    Raises:
        UVRError: not writable, or it holds a run already and `overwrite` is false.
    """
    if not overwrite and (out / report).exists():
        raise UVRError(f"{out}: holds a run already ({report}); name another folder, or pass --overwrite")
    stage, new = _open(out)
    try:
        yield stage
        for path in sorted(stage.iterdir(), key=lambda path: (path.name == report, path.name)):
            os.replace(path, out / path.name)
    finally:
        _close(stage, new)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("uvr-core", "torch", "diffusers", "transformers")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def commit() -> str | None:
    """Git commit of the source that runs, with a + if files were changed since; None outside of a checkout of it."""
    here = Path(__file__).resolve()

    def git(*question: str) -> str:
        line = ["git", "-C", str(here.parent), *question]
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
