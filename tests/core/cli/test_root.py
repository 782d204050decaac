"""The `uvr` group: what its help costs and lists, commands of plugins and of extras, how commands end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from commands import ran, refused, registered

from uvr_core import plugins

HEAVY = {"torch", "numpy", "diffusers", "transformers", "scipy", "safetensors", "PIL", "rich"}


@pytest.mark.parametrize("arguments", [["--help"], ["plugins", "--json"], ["--version"], ["nonsense"]])
def test_light_commands_import_nothing_heavy(arguments):
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('MODULES', *sorted({m.split('.')[0] for m in sys.modules})))\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "from uvr_core.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    (modules,) = [line for line in done.stdout.splitlines() if line.startswith("MODULES")]
    assert HEAVY & set(modules.split()) == set()


def test_help_lists_every_command_with_its_line():
    text = ran("--help").stdout
    for name in ("adapters", "plugins", "doctor", "collect", "calibrate", "generate", "report", "demo", "zoo"):
        assert f"\n  {name} " in text
    assert ran().stdout == text


@pytest.mark.parametrize(
    "command", ["adapters", "plugins", "doctor", "collect", "calibrate", "generate", "report", "demo", "zoo"]
)
def test_every_command_has_help(command):
    assert "--help" in ran(command, "--help").stdout


def test_unknown_command_gets_a_hint():
    assert "did you mean 'generate'?" in refused("genrate")


def test_usage_errors_take_one_line(checkpoint):
    assert "--out" in refused("generate", checkpoint, "--prompt", "a cat")
    assert "--dtype" in refused("generate", checkpoint, "--dtype", "int3")
    assert "No such option" in refused("plugins", "--nope")


@click.command()
@click.option("--how", default="well")
def ending(how):
    """A stranger's command."""
    if how == "interrupted":
        raise KeyboardInterrupt
    if how == "short":
        click.get_current_context().exit(1)
    if how == "unwritable":
        Path("/dev/null/x").write_text("")
    if how == "bug":
        raise ZeroDivisionError("a bug")
    click.echo("ended well")


def test_a_plugin_brings_a_command():
    with registered(uvr_commands={"ending": (ending, "It ends."), "report": (ending, "A built-in name.")}):
        listing = ran("--help").stdout
        assert "ending It ends." in " ".join(listing.split())
        assert "A built-in name." not in listing
        assert ran("ending").stdout == "ended well\n"
    with registered(uvr_commands={"broken": ("uvr_core.nowhere:command", "It is broken.")}):
        assert "It is broken." in ran("--help").stdout
        assert "uvr_core.nowhere" in refused("broken")


@pytest.mark.parametrize(("how", "code"), [("interrupted", 130), ("short", 1), ("unwritable", 2), ("bug", 70)])
def test_how_commands_end(how, code):
    with registered(uvr_commands={"ending": (ending, "It ends.")}):
        result = ran("ending", "--how", how, code=code)
    lines = result.stderr.splitlines()
    if how == "bug":
        assert "Traceback" in lines[0]
    else:
        assert len(lines) == (how != "short")


def test_a_clash_of_commands_leaves_the_built_in_ones():
    with registered(uvr_commands={"demo": (ending, "Another demo.")}):
        result = ran("--help")
        assert "generate" in result.stdout
        assert result.stderr.startswith("uvr: warning: the command name 'demo' is registered by both")


@pytest.mark.parametrize(("command", "extra"), [("analyze", "eval"), ("eval", "eval"), ("demo", "zoo"), ("zoo", "zoo")])
def test_a_command_of_an_extra_that_is_not_installed_names_it(monkeypatch, command, extra):
    monkeypatch.setattr(plugins, "registry", lambda: plugins.discover(frozenset({"builtin-adapters"})))
    line = refused(command, "anything")
    assert f'pip install "uvr-core[{extra}]"' in line
    listing = ran("--help").stdout
    assert f"\n  {command} " in listing.partition("Not installed")[2]


@pytest.mark.parametrize(("already", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_do_not_spin_unless_the_user_says_so(monkeypatch, already, after):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if already is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", already)
    ran("--help")
    assert os.environ["OMP_WAIT_POLICY"] == after
