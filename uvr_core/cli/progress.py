"""How far a long command is, on stderr: a bar on a terminal, else a line at least every ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import say

Show = Callable[[str, int, int], None]  # (what is being done, how much of it is done, of how much: 0 = unknown)
EVERY = 10.0  # seconds between two lines


@contextmanager
def stages() -> Iterator[Show]:
    """The block is given a function to tell what it does."""
    with _bar() if sys.stderr.isatty() else _lines() as show:
        yield show


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """The same for one kind of work; the block is given a function: so many more are done."""
    with stages() as show:
        yield counter(show, what, total)


def counter(show: Show, what: str, total: int) -> Callable[[int], None]:
    """A function to be told how many more of `total` are done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        show(what, done, total)

    show(what, 0, total)
    return advance


@contextmanager
def _bar() -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None)


@contextmanager
def _lines() -> Iterator[Show]:
    """A thread speaks, so that one image that takes minutes does not silence the command."""
    state = ("", 0, 0, time.monotonic())
    over = threading.Event()

    def show(what: str, done: int, total: int) -> None:
        nonlocal state
        _, before, of, began = state
        again = done < before or total != of  # another piece of work; else another stage of the same
        state = (what, done, total, time.monotonic() if again else began)

    def speak() -> None:
        while not over.wait(EVERY):
            what, done, total, began = state
            if what:
                say(line_of(what, done, total, time.monotonic() - began))

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield show
    finally:
        over.set()
        speaker.join()


def line_of(what: str, done: int, total: int, seconds: float) -> str:
    """Such as "generating: 3 of 12 after 41 s, about 2 min left"."""
    line = f"{what}: {f'{done} of {total} after ' if total else ''}{_duration(seconds)}"
    return f"{line}, about {_duration(seconds * (total - done) / done)} left" if 0 < done < total else line


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
