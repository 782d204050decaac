"""What the commands write: all of it or nothing, and checked before the long work."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UVRError
from ..files import finite, to_json

REPORT = "report.json"

__all__ = ["REPORT", "check_file", "check_folder", "finite", "folder", "progress", "stages", "to_json", "versions"]


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


def _close(stage: Path | None, made: list[Path]) -> None:
    if stage is not None:
        shutil.rmtree(stage, ignore_errors=True)
    for path in made:
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
    stage, made = _open(out)
    try:
        yield stage
        for path in sorted(stage.iterdir(), key=lambda path: (path.name == report, path.name)):
            os.replace(path, out / path.name)
    finally:
        _close(stage, made)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr if that is a terminal; the block is given a function: (what, done, total)."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """The same with one description; the block is given a function: so many more are done."""
    done = 0
    with stages() as show:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            show(what, done, total)

        show(what, 0, total)
        yield advance


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import importlib.metadata
    import platform

    names = ("uvr-core", "torch", "diffusers", "transformers")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def commit() -> str | None:
    """Git commit of the source that runs, with a + if files were changed since; None outside of a checkout of it."""
    import subprocess

    here = Path(__file__).resolve()

    def git(*question: str) -> str:
        line = ["git", "-C", str(here.parent), *question]
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
