"""Tables on stdout."""

from __future__ import annotations

from uvr_core.cli.tables import table


def test_cells_are_plain_text(capsys):
    table("Names", ("kind", "registered"), [("policy", "[bold]uvr[/bold]"), (1, None), ("\x1b[2J", 2)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["Names"],
        ["kind", "registered"],
        ["policy", "[bold]uvr[/bold]"],
        ["1", "None"],
        ["\\x1b[2J", "2"],
    ]
