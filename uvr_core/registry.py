"""The registry: names of every kind that plugins bring, resolved on first use, with errors that name their origin."""

from __future__ import annotations

import importlib
import os
import signal
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import pluggy

from .errors import PluginError, did_you_mean
from .signatures import required

KINDS = {
    "adapter": "uvr_adapters",
    "unfit": "uvr_unfit",
    "detector": "uvr_detectors",
    "policy": "uvr_policies",
    "judge": "uvr_judges",
    "baseline": "uvr_baselines",
    "concept": "uvr_concepts",
    "recipe": "uvr_recipes",
    "model": "uvr_models",
    "command": "uvr_commands",
    "page": "uvr_pages",
}
BROKEN = (Exception, SystemExit)  # what a stranger's code may raise while it is imported or called


@attrs.frozen
class Origin:
    """Where a plugin came from and what became of it.

    Attributes:
        name: of its entry point.
        distribution, version: "?" if its metadata cannot be read.
        status: "ok", "no hooks", "not in UVR_PLUGINS" or "failed: " and why.
        hooks: the hooks it implements.
    """

    name: str
    distribution: str
    version: str
    status: str = "ok"
    hooks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"plugin {self.name!r} of {self.distribution} {self.version}"


class Named(NamedTuple):
    """An object of a plugin with the name it goes by: the registered one, else its own, else its class's."""

    object: Any
    name: str


@attrs.frozen
class Registry:
    """A pluggy manager with the record of what was discovered."""

    manager: pluggy.PluginManager
    origins: list[Origin] = attrs.field(factory=list)
    strict: bool = False

    def names(self, kind: str) -> dict[str, tuple[object, str]]:
        """{name: (target, plugin name)} of one kind. Imports nothing.

        A hook that raises is a warning that names its plugin (strict: an error), and the others' names stand. So is a
        name that two plugins claim: neither has it, since which of them would run must not be left to chance.
        """
        names = {}
        for name, claims in self.claims(kind).items():
            if len(claims) > 1:
                error = _clash(kind, name, claims)
                self.complain(str(error), error)
            else:
                names[name] = claims[0]
        return names

    def clashes(self, kind: str) -> list[str]:
        """What is wrong, for each name that several plugins claim."""
        claimed = self.claims(kind).items()
        return [str(_clash(kind, name, claims)) for name, claims in claimed if len(claims) > 1]

    def claims(self, kind: str) -> dict[str, list[tuple[object, str]]]:
        """{name: every (target, plugin name) that claims it}."""
        claimed: dict[str, list[tuple[object, str]]] = {}
        hook = getattr(self.manager.hook, KINDS[kind])
        for implementation in hook.get_hookimpls():
            try:
                targets = dict(implementation.function() or {})
                _check_targets(kind, targets)
            except BROKEN as error:
                raise_if_signalled(error)
                message = f"{KINDS[kind]} of plugin {implementation.plugin_name!r} failed: {error!r}"
                self.complain(message, error)
                continue
            for name, target in targets.items():
                claimed.setdefault(name, []).append((target, implementation.plugin_name))
        return claimed

    def get(self, kind: str, name: str) -> Any:
        """The object registered under a name; "module:attribute" is imported now. Of a concept or recipe: its path.

        Raises:
            PluginError: unknown name, two plugins claim it, its module fails to import, or the object is not what the
                hook asks for.
        """
        claims = self.claims(kind)
        if name not in claims:
            raise PluginError(f"unknown {kind} {name!r}{did_you_mean(name, claims)}{self.not_loaded}")
        if len(claims[name]) > 1:
            raise _clash(kind, name, claims[name])
        return _resolve(kind, name, *claims[name][0])

    def resolve_all(self, kind: str) -> dict[str, Any]:
        """{name: object} of one kind. One that does not resolve is left out with a warning (strict: an error)."""
        objects = {}
        for name, (target, plugin) in self.names(kind).items():
            try:
                objects[name] = _resolve(kind, name, target, plugin)
            except PluginError as error:
                self.complain(f"{error}; skipped", error)
        return objects

    def make(self, kind: str, name_or_object: Any, **options: Any) -> Named:
        """An object of one kind, ready to work: of a registered name, of a class, or the object itself.

        Args:
            name_or_object: a class is made with `options`. An object is taken as it is; options make a changed copy
                of one that is an attrs class. A judge's factory is called.

        Raises:
            PluginError: as `get`.
            TypeError: there are no such options. Whatever the making raises.
        """
        by_name = isinstance(name_or_object, str)
        target = self.get(kind, name_or_object) if by_name else name_or_object
        factory = isinstance(target, type) or (kind == "judge" and by_name and not hasattr(target, "locate"))
        if factory:
            try:
                target = target(**options)
            except SystemExit as error:  # a stranger's constructor must not end the process
                raise_if_signalled(error)
                raise PluginError(f"{kind} {name_or_object!r}: its making ended with {error!r}") from error
        elif options:
            target = attrs.evolve(target, **options)
        return Named(target, name_or_object if by_name else getattr(target, "name", type(target).__name__))

    def origin(self, plugin: str) -> Origin:
        """Where the plugin of that name came from; "?" for one registered by hand."""
        loaded = (origin for origin in self.origins if origin.name == plugin and origin.status == "ok")
        return next(loaded, Origin(plugin, "?", "?"))

    @property
    def not_loaded(self) -> str:
        """A sentence that names the plugins that failed, whose names are therefore unknown; "" if none did."""
        failed = [f"{origin} ({origin.status})" for origin in self.origins if origin.status.startswith("failed")]
        return f" Not loaded: {'; '.join(failed)}" if failed else ""

    def complain(self, message: str, error: BaseException) -> None:
        """Warn; strict: raise PluginError."""
        if self.strict:
            raise PluginError(message) from error
        warnings.warn(message, RuntimeWarning, stacklevel=4)

    def register(self, plugin: object, name: str | None = None) -> None:
        """Register a plugin object or module by hand (tests, notebooks)."""
        self.manager.register(plugin, name)


def raise_if_signalled(error: BaseException) -> None:
    """Raise an error on that the handler of a signal raised in a stranger's code: it is not the stranger's."""
    handlers = (signal.getsignal(number) for number in signal.valid_signals())
    codes = {getattr(getattr(handler, "__func__", handler), "__code__", None) for handler in handlers} - {None}
    place = error.__traceback__
    while place is not None:
        if place.tb_frame.f_code in codes:
            raise error
        place = place.tb_next


def _clash(kind: str, name: str, claims: Sequence[tuple[object, str]]) -> PluginError:
    plugins = " and ".join(repr(plugin) for _, plugin in claims)
    return PluginError(
        f"the {kind} name {name!r} is registered by both {plugins}; uninstall one, or exclude it with UVR_PLUGINS"
    )


def _resolve(kind: str, name: str, target: object, plugin: str) -> Any:
    if kind in ("concept", "recipe"):
        return Path(str(target))
    where = f"{kind} {name!r} of plugin {plugin!r}"
    if kind == "command" and isinstance(target, tuple):
        target = target[0]  # the other half is its one-line help
    if isinstance(target, str):
        where += f" points to {target!r}"
        module, _, attribute = target.partition(":")
        if not module or not attribute:
            raise PluginError(f'{where}: expected "module:attribute"')
        try:
            target = getattr(importlib.import_module(module), attribute)
        except BROKEN as error:
            raise_if_signalled(error)
            raise PluginError(f"{where}: {error!r}") from error
    if fault := _fault(kind, target):
        raise PluginError(f"{where}: {fault}")
    return target


def _check_targets(kind: str, targets: Mapping[Any, Any]) -> None:
    """Raise TypeError unless names are text and targets have the form that the hook asks for."""
    for name, target in targets.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"expected names that are text, got {name!r}")
        if kind == "command" and isinstance(target, tuple) and len(target) != 2:
            raise TypeError(f"{name!r}: expected (command, one-line help), got {target!r}")
        if kind in ("concept", "recipe") and not isinstance(target, (str, os.PathLike)):
            raise TypeError(f"{name!r}: expected a path, got {target!r}")
        if kind == "unfit" and (not isinstance(target, str) or not target):
            raise TypeError(f"{name!r}: expected a reason, one line, got {target!r}")


def _fault(kind: str, target: object) -> str | None:
    """What is wrong with an object registered as one of a kind: "expected ..., got ...", or None."""
    got = f"an object of {type(target).__qualname__}"
    if isinstance(target, type):
        got = f"the class {target.__qualname__}"
    if method := {"detector": "scores", "policy": "edit", "baseline": "generate"}.get(kind):
        if not callable(getattr(target, method, None)):
            return f"expected a {kind.capitalize()} (it has a method {method!r}, see uvr_core.protocols), got {got}"
        if isinstance(target, type) and (needs := required(target)):
            return f"expected a class that is made without arguments, {target.__qualname__} needs {', '.join(needs)}"
        return None
    if kind == "adapter":
        from .adapter import Adapter

        return None if isinstance(target, Adapter) else f"expected an object of uvr_core.Adapter, got {got}"
    if kind == "command":
        import click

        return None if isinstance(target, click.Command) else f"expected a click.Command, got {got}"
    return None if callable(target) else f"expected something callable, got {got}"
