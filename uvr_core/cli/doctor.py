"""uvr doctor: does UVR fit a model? The conformance checks on a small version of it, or a draft of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import click

from ..errors import AdapterNotFound, ConformanceError, UVRError
from . import inputs, models, outputs, say
from .listing import _table


@click.command()
@click.argument("model", required=False)
@click.option("--adapter", metavar="NAME", help="Adapter; else recognised by the transformer's class.")
@click.option("--matrix", is_flag=True, help="Print what is regulated, and what refused, beside other features.")
@inputs.json_option
@click.pass_context
def doctor(ctx: click.Context, model: str | None, adapter: str | None, matrix: bool, as_json: bool) -> None:
    """Check that UVR fits MODEL, whose weights are not read, or a transformer class of diffusers.

    With an adapter: lists the taps and runs the conformance checks on a small random version. Without one: prints a
    draft of an adapter, its doubts marked TODO. Exits with 1 if a check fails or there is no adapter yet.

    With --matrix, and no MODEL: the table of docs/compatibility.md.
    """
    if matrix:
        _matrix(as_json)
        return
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'.", ctx)
    inputs.known("adapter", adapter)
    transformer, cls, config = _find(model)
    from ..regulator import find_adapter

    try:
        chosen = find_adapter(transformer if transformer is not None else _blank(cls), adapter)
    except AdapterNotFound as error:
        ok = _draft(model, cls, config, error, as_json)
    else:
        ok = _examine(model, transformer, cls, config, chosen, as_json)
    if not ok:
        ctx.exit(1)


def _matrix(as_json: bool) -> None:
    """Print the situation matrix."""
    from ..doctor.compatibility import SITUATIONS

    if as_json:
        click.echo(outputs.to_json({"situations": [attrs.asdict(s) for s in SITUATIONS]}))
        return
    rows = [(s.name, ", ".join(s.orders), ", ".join(s.pipelines), s.outcome, s.note) for s in SITUATIONS]
    _table("Situations", ("situation", "before or after attach", "pipelines", "outcome", ""), rows)


def _find(name: str) -> tuple[Any, type, dict[str, Any]]:
    """(transformer or None, its class, its configuration) of a checkpoint, a plugin's model, or a class's name."""
    if name.isidentifier() and not name.islower() and not Path(name).exists():
        from ..testing.tiny import model_class

        models.be_quiet()
        return None, model_class(name), {}
    model = models.load_skeleton(name)
    transformer = getattr(model, "transformer", model)
    return transformer, type(transformer), dict(getattr(transformer, "config", {}))


def _blank(cls: type) -> Any:
    """An object of that class without contents: adapters recognise classes."""
    return object.__new__(cls)


# ---------------------------------------------------------------------------------------------- with an adapter


def _examine(model: str, transformer: Any, cls: type, config: dict[str, Any], adapter: Any, as_json: bool) -> bool:
    from ..regulator import attach
    from ..testing.tiny import small_model

    small = None
    facts: dict[str, Any] = {"model": model, "adapter": adapter.name}
    try:
        small = small_model(cls, config)
    except UVRError as error:
        facts["checks"] = [{"name": "small-version", "status": "failed", "message": str(error)}]
    shown = transformer if transformer is not None else small.model if small is not None else None
    if shown is not None:
        with attach(shown, adapter) as reg:
            modules = dict(shown.named_modules())
            facts |= {
                "fingerprint": attrs.asdict(reg.fingerprint),
                "taps": [{"path": path, "module": type(modules[path]).__name__} for path in reg.taps],
                "probes": list(adapter.probe_paths(shown)),
            }
    if small is not None:
        facts["checks"] = _checks(adapter, small)
    if as_json:
        click.echo(outputs.to_json(facts))
    else:
        _show(facts)
    return all(check["status"] in ("passed", "skipped") for check in facts["checks"])


def _checks(adapter: Any, small: Any) -> list[dict[str, str]]:
    """Outcomes of check_adapter on fresh copies of a small model."""
    from ..testing import Conformance, check_adapter
    from ..testing.tiny import example_of

    try:
        report = check_adapter(adapter, lambda: example_of(small))
    except ConformanceError as error:
        if not isinstance(error.report, Conformance):
            raise
        report = error.report
    return [{"name": o.name, "status": str(o.status), "message": o.message} for o in report.outcomes]


def _show(facts: dict[str, Any]) -> None:
    if "taps" in facts:
        f = facts["fingerprint"]
        size = f"{f['blocks']} joint attention blocks, {f['heads']} heads x {f['head_dim']}"
        click.echo(f"{facts['model']}: {f['model']}, adapter {facts['adapter']}: {size}")
        rows = [
            (number, tap["path"], tap["module"], "yes" if tap["path"] in facts["probes"] else "")
            for number, tap in enumerate(facts["taps"], 1)
        ]
        _table("Taps", ("", "path", "module", "probe"), rows)
        click.echo()
    _table(
        "Checks, on a small random version", ("check", "status", ""),
        [(check["name"], check["status"], check["message"]) for check in facts["checks"]],
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- without one


def _draft(model: str, cls: type, config: dict[str, Any], error: AdapterNotFound, as_json: bool) -> bool:
    """Print a draft; False, since UVR does not know the class yet."""
    from ..doctor.draft import draft, load_draft
    from ..doctor.examine import examine
    from ..testing.tiny import small_model

    try:
        small = small_model(cls, config)
        findings = examine(small)
    except UVRError as why:
        raise AdapterNotFound(f"{error} No draft either: {why}") from why
    source = draft(findings, small)
    checks = _checks(load_draft(source), small)
    failed = [check["name"] for check in checks if check["status"] not in ("passed", "skipped")]
    if as_json:
        facts = {"findings": attrs.asdict(findings), "draft": source, "checks": checks}
        click.echo(outputs.to_json({"model": model, "adapter": None, **facts}))
        return False
    click.echo(source, nl=False)
    doubts = f"{len(findings.unsure)} TODO" if findings.unsure else "no doubts"
    verdict = f"its checks fail: {', '.join(failed)}" if failed else "it passes the checks on a small random version"
    say(f"no adapter recognises {cls.__name__}: this is a draft ({doubts}); {verdict}. See CONTRIBUTING.md")
    return False


__all__ = ["doctor"]
