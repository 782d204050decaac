"""Progress without a terminal: a line now and then, on stderr, and nothing for what is quickly done."""

from __future__ import annotations

import time

from uvr_core.cli import progress


def test_a_line_says_what_was_done_and_how_long_is_left():
    assert progress.line_of("generating", 3, 12, 40) == "generating: 3 of 12 after 40 s, about 2 min left"
    assert progress.line_of("generating", 0, 12, 40) == "generating: 0 of 12 after 40 s"
    assert progress.line_of("generating", 12, 12, 600) == "generating: 12 of 12 after 10 min"
    assert progress.line_of("loading flux", 0, 0, 20) == "loading flux: 20 s"


def test_lines_go_on_while_the_work_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.02)
    with progress.progress("drawing", 4) as advance:
        advance(1)
        deadline = time.monotonic() + 30
        lines: list[str] = []
        while len(lines) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
            lines += capsys.readouterr().err.splitlines()
        advance(3)
    assert len(lines) >= 3
    assert all(line.startswith("uvr: drawing: 1 of 4 after 0 s, about 0 s left") for line in lines)
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == "", "the speaker ends with its block"


def test_quick_work_says_nothing(capsys):
    with progress.progress("drawing", 2) as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")


def test_the_time_left_counts_from_the_stage_in_hand(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "EVERY", 0.02)
    with progress.stages() as show:
        show("loading", 0, 0)
        show("drawing", 1, 3)
        while not (text := capsys.readouterr().err):
            time.sleep(0.02)
    assert text.splitlines()[0] == "uvr: drawing: 1 of 3 after 2 min, about 3 min left"
