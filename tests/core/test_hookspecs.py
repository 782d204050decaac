"""The hooks: all kinds declared, on one screen."""

from __future__ import annotations

from pathlib import Path

from uvr_core import hookspecs, plugins


def test_the_contract_fits_one_screen_and_is_whole() -> None:
    source = Path(hookspecs.__file__).read_text()
    declared = {name for name in dir(hookspecs) if name.startswith("uvr_")}
    assert declared == set(plugins.KINDS.values())
    assert all((getattr(hookspecs, name).__doc__ or "").startswith("{") for name in declared)
    assert len(source.splitlines()) <= 70
