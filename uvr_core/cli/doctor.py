"""uvr doctor: does UVR fit a model? The conformance checks on a small version of it, or a draft of an adapter."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import click

from ..errors import AdapterNotFound, UVRError
from ..files import to_json
from . import load, say
from .options import check_registered, json_option
from .tables import table


@click.command()
@click.argument("model", required=False)
@click.option(
    "--adapter",
    metavar="NAME|MODULE:ADAPTER",
    help="Adapter, registered or in a module; else recognised by the transformer's class.",
)
@click.option(
    "--example",
    metavar="MODULE:FUNCTION",
    help="A function that gives a fresh uvr_core.testing.Example, for classes whose arguments cannot be made up.",
)
@click.option("--matrix", is_flag=True, help="Print what is regulated, and what refused, beside other features.")
@json_option
@click.pass_context
def doctor(
    ctx: click.Context, model: str | None, adapter: str | None, example: str | None, matrix: bool, as_json: bool
) -> None:
    """Check that UVR fits MODEL, whose weights are not read, or a transformer class of diffusers.

    With an adapter: lists the taps and runs the conformance checks on a small random version, or on the --example.
    Without one: prints a draft of an adapter, its doubts marked TODO. Exits with 1 if a check fails or there is no
    adapter yet.

    With --matrix, and no MODEL: the table of docs/compatibility.md.
    """
    if matrix:
        _matrix(as_json)
        return
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'.", ctx)
    named: Any = _adapter(adapter)
    make_example = None if example is None else _function(example)
    transformer, cls, config = _find(model)
    from ..engine.lookup import find_adapter

    try:
        known = find_adapter(transformer if transformer is not None else _blank(cls), named)
    except AdapterNotFound as error:
        if example is not None:
            raise AdapterNotFound(f"{error} --example needs one: --adapter module:ADAPTER.") from error
        ok = _draft(model, cls, config, as_json)
    else:
        facts = {"model": model, "adapter": known.name, **_facts_of(known, transformer, cls, config, make_example)}
        ok = _report(facts, as_json)
    if not ok:
        ctx.exit(1)


def _matrix(as_json: bool) -> None:
    """Print the situation matrix."""
    from ..doctor.compatibility import SITUATIONS

    if as_json:
        click.echo(to_json({"situations": [attrs.asdict(s) for s in SITUATIONS]}))
        return
    rows = [(s.name, ", ".join(s.orders), ", ".join(s.pipelines), s.outcome, s.note) for s in SITUATIONS]
    table("Situations", ("situation", "before or after attach", "pipelines", "outcome", ""), rows)


def _find(name: str) -> tuple[Any, type, dict[str, Any]]:
    """(transformer or None, its class, its configuration) of a checkpoint, a plugin's model, or a class's name."""
    if name.isidentifier() and not name.islower() and not Path(name).exists():
        from ..testing.tiny import model_class

        load.be_quiet()
        return None, model_class(name), {}
    model = load.load_skeleton(name)
    transformer = getattr(model, "transformer", model)
    return transformer, type(transformer), dict(getattr(transformer, "config", {}))


def _blank(cls: type) -> Any:
    """An object of that class without contents: adapters recognise classes."""
    return object.__new__(cls)


def _adapter(name: str | None) -> Any:
    """The Adapter that `module:ADAPTER` names, or a registered name as it is.

    Raises:
        UVRError: there is no such adapter.
    """
    if name is None or ":" not in name:
        check_registered("adapter", name)
        return name
    from ..adapter import Adapter

    adapter = _attribute("--adapter", name, "module:ADAPTER")
    if not isinstance(adapter, Adapter):
        raise UVRError(f"--adapter {name}: expected an Adapter, got {type(adapter).__name__}")
    return adapter


def _attribute(option: str, name: str, form: str) -> Any:
    """What `module:attribute` names; modules of the working directory included. Raises UVRError: there is none."""
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UVRError(f"{option} {name}: expected {form}, got {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)


def _function(name: str) -> Callable[[], Any]:
    """What `module:function` names. Raises UVRError: there is no such function."""
    function = _attribute("--example", name, "module:function")
    if not callable(function):
        raise UVRError(f"--example {name}: expected a function that gives an Example, got {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def _facts_of(
    adapter: Any, transformer: Any, cls: type, config: dict[str, Any], make_example: Callable[[], Any] | None
) -> dict[str, Any]:
    from ..doctor.checkup import check_up

    return check_up(adapter, transformer, cls, config, make_example)


def _report(facts: dict[str, Any], as_json: bool) -> bool:
    """Print what fits and what does not; True if all checks are in order."""
    from ..doctor.checkup import failed

    if as_json:
        click.echo(to_json(facts))
    else:
        _show(facts)
    return not failed(facts["checks"])


def _show(facts: dict[str, Any]) -> None:
    if "taps" in facts:
        f = facts["fingerprint"]
        size = f"{f['blocks']} joint attention blocks, {f['heads']} heads x {f['head_dim']}"
        click.echo(f"{facts['model']}: {f['model']}, adapter {facts['adapter']}: {size}")
        rows = [
            (number, tap["path"], tap["module"], "yes" if tap["path"] in facts["probes"] else "")
            for number, tap in enumerate(facts["taps"], 1)
        ]
        table("Taps", ("", "path", "module", "probe"), rows)
        for route in facts["routes"]:
            click.echo(f"text beside the joint attention, not regulated: {route['name']}: {route['description']}")
        click.echo()
    checks = [(check["name"], check["status"], check["message"]) for check in facts["checks"]]
    table("Checks, on a small random version", ("check", "status", ""), checks)


def _draft(model: str, cls: type, config: dict[str, Any], as_json: bool) -> bool:
    """Print a draft; False, since UVR does not know the class yet."""
    from ..doctor.checkup import draft_for, failed

    try:
        facts = draft_for(cls, config)
    except UVRError as why:
        raise AdapterNotFound(f"no adapter recognises {cls.__name__}, and there is no draft: {why}") from why
    if as_json:
        click.echo(to_json({"model": model, "adapter": None, **facts}))
        return False
    click.echo(facts["draft"], nl=False)
    unsure, failures = facts["findings"]["unsure"], failed(facts["checks"])
    doubts = f"{len(unsure)} TODO, guidance not verified" if unsure else "guidance not verified"
    verdict = (
        f"its checks fail: {', '.join(failures)}" if failures else "it passes the checks on a small random version"
    )
    say(f"no adapter recognises {cls.__name__}: this is a draft ({doubts}); {verdict}. See docs/port-a-model.md")
    return False


__all__ = ["doctor"]
