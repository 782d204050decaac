"""The command line, `uvr`. Names cost nothing until used: help imports neither torch nor any command's module.

Exit codes: 0 done; 1 a check or a gate fell short; 2 bad input, one line on stderr; 130 interrupted. Anything else that
is raised is a bug of UVR or of a plugin: a traceback, and 70.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from .. import __version__, plugins
from ..errors import PluginError, UVRError, did_you_mean
from ..files import printable

BUILT_IN: Mapping[str, tuple[str, str]] = {
    "adapters": ("uvr_core.cli.listing:adapters", "List the model families that UVR knows."),
    "plugins": ("uvr_core.cli.listing:plugins", "List what was loaded through the plugin door."),
    "concepts": ("uvr_core.cli.listing:concepts", "List the concepts that are installed, with what was measured."),
    "doctor": ("uvr_core.cli.doctor:doctor", "Check that UVR fits a model; draft an adapter."),
    "collect": ("uvr_core.cli.concept:collect", "Learn what a concept looks like inside a model."),
    "calibrate": ("uvr_core.cli.concept:calibrate", "Choose probe, window and threshold of a concept."),
    "generate": ("uvr_core.cli.generate:generate", "Generate pictures, regulated, with a report."),
    "edit": ("uvr_core.cli.generate:edit", "Edit pictures, regulated, with a report."),
    "pull": ("uvr_core.cli.hub:pull", "Fetch a concept file of the Hub, pinned and checked."),
    "report": ("uvr_core.cli.report:report", "Show the report of a run."),
}
EXTRAS = {
    "analyze": "eval",
    "concept": "eval",
    "eval": "eval",
    "judge": "eval",
    "prompt-sets": "eval",
    "push": "eval",
    "demo": "zoo",
    "zoo": "zoo",
}  # what pip extra brings a command
BUG = 70  # EX_SOFTWARE


class Interrupted(click.ClickException):
    """Ctrl-C."""

    exit_code = 130


def one_line(text: object) -> str:
    """The text without line breaks, and with nothing that moves the cursor."""
    return printable(" ".join(str(text).split()))


def say(text: str) -> None:
    """One line to stderr."""
    click.echo(f"uvr: {one_line(text)}", err=True)


class Root(click.Group):
    """The `uvr` group: built-in commands, and those of plugins, each imported when it is called."""

    def _of_plugins(self) -> dict[str, str]:
        """{name: one-line help} of the plugins' commands; a built-in name cannot be taken."""
        try:
            known = plugins.registry().names("command")
        except PluginError as error:
            warnings.warn(str(error), RuntimeWarning, stacklevel=2)
            return {}
        return {
            name: str(target[1]) if isinstance(target, tuple) else ""
            for name, (target, _) in sorted(known.items())
            if name not in BUILT_IN
        }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*BUILT_IN, *self._of_plugins()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in BUILT_IN:
            module, _, attribute = BUILT_IN[cmd_name][0].partition(":")
            command = getattr(importlib.import_module(module), attribute)
        elif cmd_name in self._of_plugins():
            command = plugins.registry().get("command", cmd_name)
            if not isinstance(command, click.Command):
                raise PluginError(f"command {cmd_name!r}: expected a click.Command, got {type(command).__name__}")
        else:
            return None
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name.startswith("-") or name in BUILT_IN:  # a built-in command needs no look at the plugins
            return super().resolve_command(ctx, args)
        known = self.list_commands(ctx)
        if name not in known and name in EXTRAS:
            ctx.fail(f"`uvr {name}` comes with an extra that is not installed: {_install(EXTRAS[name])}")
        if name not in known:
            ctx.fail(f"unknown command {name!r}{did_you_mean(name, known)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        here = self._of_plugins()
        missing = {name: extra for name, extra in EXTRAS.items() if name not in here and name not in BUILT_IN}
        for title, rows in (
            ("Commands", [(name, text) for name, (_, text) in BUILT_IN.items()]),
            ("Commands of plugins", list(here.items())),
            ("Not installed", [(name, _install(extra)) for name, extra in missing.items()]),
        ):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, *more: Any, **extra: Any
    ) -> NoReturn:
        """Run and exit; see the module's docstring for the codes."""
        # Before torch loads: threads that spin while they wait make a busy machine ten times slower.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore", DeprecationWarning)
                warnings.simplefilter("ignore", FutureWarning)
            warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
            sys.exit(self._run(args, prog_name or "uvr", **{**extra, "standalone_mode": False}))

    def _run(self, args: Sequence[str] | None, prog_name: str, **extra: Any) -> int:
        try:
            result = super().main(args, prog_name, **extra)
            return result if isinstance(result, int) else 0
        except Interrupted:
            return _fail("interrupted", Interrupted.exit_code)
        except click.Abort:  # a prompt was left
            return _fail("interrupted", Interrupted.exit_code)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else prog_name
            return _fail(f"{error.format_message()}; see `{path} --help`", error.exit_code)
        except click.ClickException as error:
            return _fail(error.format_message())
        except UVRError as error:
            return _fail(str(error))
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            return _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        except Exception:
            traceback.print_exc()
            return BUG


def _install(extra: str) -> str:
    return f'pip install "uvr-core[{extra}]"'


def _fail(message: str, code: int = 2) -> int:
    if os.environ.get("UVR_TRACEBACK"):
        traceback.print_exc()
    say(message)
    return code


@click.group(
    cls=Root,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 a check or a gate fell short; 2 bad input: one line on stderr (all of it with "
    "UVR_TRACEBACK=1).",
)
@click.version_option(__version__, package_name="uvr-core")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Find and regulate unsafe visual content inside diffusers image transformers, while they draw.

    MODEL is a folder in diffusers format, a model of the Hub (owner/name), or PREFIX:NAME of a plugin (zoo:flux).
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
