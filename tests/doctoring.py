"""uvr doctor as its tests run it."""

from __future__ import annotations

from click.testing import CliRunner, Result

from uvr_core.cli import main


def doctor(*arguments: object, code: int) -> Result:
    result = CliRunner().invoke(main, ["doctor", *map(str, arguments)])
    assert result.exit_code == code, f"exit {result.exit_code}: {result.stdout}{result.stderr}"
    return result
