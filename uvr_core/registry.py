"""The plugin manager: discovery through the entry-point group "uvr", lazy resolution, errors that name their origin.

`UVR_PLUGINS` (comma-separated entry-point names) is an allow-list: when set, only those load, and a name in it that is
not installed is an error, since a misspelt allow-list would leave out what it was meant to keep. With
`UVR_STRICT_PLUGINS=1` a plugin that fails to load raises instead of warning.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import os
import warnings
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import attrs
import pluggy

from . import hookspecs
from .errors import PluginError, did_you_mean

GROUP = "uvr"
KINDS = {
    "adapter": "uvr_adapters",
    "detector": "uvr_detectors",
    "policy": "uvr_policies",
    "judge": "uvr_judges",
    "baseline": "uvr_baselines",
    "concept": "uvr_concepts",
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


@attrs.frozen
class Registry:
    """A pluggy manager with the record of what was discovered."""

    manager: pluggy.PluginManager
    origins: list[Origin] = attrs.field(factory=list)
    strict: bool = False

    def names(self, kind: str) -> dict[str, tuple[object, str]]:
        """{name: (target, plugin name)} of one kind. Imports nothing.

        A hook that raises is a warning that names its plugin (strict: an error), and the others' names stand.

        Raises:
            PluginError: two plugins claim one name. Which of them would run must not be left to chance.
        """
        found: dict[str, tuple[object, str]] = {}
        hook = getattr(self.manager.hook, KINDS[kind])
        for implementation in hook.get_hookimpls():
            try:
                targets = dict(implementation.function() or {})
                _check_targets(kind, targets)
            except BROKEN as error:
                message = f"{KINDS[kind]} of plugin {implementation.plugin_name!r} failed: {error!r}"
                self._complain(message, error)
                continue
            for name, target in targets.items():
                if name in found:
                    raise PluginError(
                        f"the {kind} name {name!r} is registered by both {found[name][1]!r} and "
                        f"{implementation.plugin_name!r}; uninstall one, or exclude it with UVR_PLUGINS"
                    )
                found[name] = (target, implementation.plugin_name)
        return found

    def get(self, kind: str, name: str) -> Any:
        """The object registered under a name; "module:attribute" is imported now. Of a concept: its path.

        Raises:
            PluginError: unknown name, its module fails to import, or the object is not what the hook asks for.
        """
        known = self.names(kind)
        if name not in known:
            raise PluginError(f"unknown {kind} {name!r}{did_you_mean(name, known)}")
        return _resolve(kind, name, *known[name])

    def resolve_all(self, kind: str) -> dict[str, Any]:
        """{name: object} of one kind. One that does not resolve is left out with a warning (strict: an error)."""
        found = {}
        for name, (target, plugin) in self.names(kind).items():
            try:
                found[name] = _resolve(kind, name, target, plugin)
            except PluginError as error:
                self._complain(f"{error}; skipped", error)
        return found

    def origin(self, plugin: str) -> Origin:
        """Where the plugin of that name came from; "?" for one registered by hand."""
        loaded = (origin for origin in self.origins if origin.name == plugin and origin.status == "ok")
        return next(loaded, Origin(plugin, "?", "?"))

    def _complain(self, message: str, error: BaseException) -> None:
        if self.strict:
            raise PluginError(message) from error
        warnings.warn(message, RuntimeWarning, stacklevel=4)

    def register(self, plugin: object, name: str | None = None) -> None:
        """Register a plugin object or module by hand (tests, notebooks)."""
        self.manager.register(plugin, name)


def _resolve(kind: str, name: str, target: object, plugin: str) -> Any:
    if kind == "concept":
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
        if kind == "concept" and not isinstance(target, (str, os.PathLike)):
            raise TypeError(f"{name!r}: expected a path, got {target!r}")


def _fault(kind: str, found: object) -> str | None:
    """What is wrong with an object registered as one of a kind: "expected ..., got ...", or None."""
    got = f"the class {found.__qualname__}" if isinstance(found, type) else f"an object of {type(found).__qualname__}"
    if method := {"detector": "scores", "policy": "edit", "baseline": "generate"}.get(kind):
        if not callable(getattr(found, method, None)):
            return f"expected a {kind.capitalize()} (it has a method {method!r}, see uvr_core.protocols), got {got}"
        if isinstance(found, type) and (needs := _required(found)):
            return f"expected a class that is made without arguments, {found.__qualname__} needs {', '.join(needs)}"
        return None
    if kind == "adapter":
        from .adapter import Adapter

        return None if isinstance(found, Adapter) else f"expected an object of uvr_core.Adapter, got {got}"
    if kind == "command":
        import click

        return None if isinstance(found, click.Command) else f"expected a click.Command, got {got}"
    return None if callable(found) else f"expected something callable, got {got}"


def _required(made: type) -> list[str]:
    """Names of the arguments without which a class cannot be made."""
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):  # some builtins carry no signature
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def discover(allow: frozenset[str] | None = None, strict: bool = False) -> Registry:
    """Load every plugin of the entry-point group; a bad one is a warning that names its distribution.

    Args:
        allow: entry points to load; None: all. Those left out are not imported.
        strict: a bad plugin raises.

    Raises:
        PluginError: `allow` names a plugin that is not installed; or, when strict, a plugin is bad.
    """
    manager = pluggy.PluginManager("uvr")
    manager.add_hookspecs(hookspecs)
    registry = Registry(manager, strict=strict)
    points = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name)
    installed = {point.name for point in points}
    if unknown := sorted((allow or frozenset()) - installed):
        hints = " ".join(f"no plugin {name!r} is installed{did_you_mean(name, installed)}" for name in unknown)
        raise PluginError(f"UVR_PLUGINS: {hints} Correct the allow-list, or install what it names")
    for point in points:
        origin = _origin(point)
        if allow is not None and point.name not in allow:
            registry.origins.append(attrs.evolve(origin, status="not in UVR_PLUGINS"))
            continue
        taken = manager.has_plugin(point.name)
        try:
            if taken:
                raise PluginError("another distribution's plugin has that name")
            plugin = point.load()
            manager.register(plugin, point.name)
            manager.check_pending()
        except BROKEN as error:
            if not taken and manager.has_plugin(point.name):
                manager.unregister(name=point.name)
            reason = str(error) or repr(error)
            registry._complain(f"{origin} did not load: {reason}", error)
            registry.origins.append(attrs.evolve(origin, status=f"failed: {reason}"))
            continue
        hooks = tuple(sorted(caller.name for caller in manager.get_hookcallers(plugin) or ()))
        if not hooks:
            message = f"{origin} implements no hook; is @hookimpl missing, or its entry point the wrong module?"
            registry._complain(message, PluginError(message))
        registry.origins.append(attrs.evolve(origin, status="ok" if hooks else "no hooks", hooks=hooks))
    return registry


def _origin(point: EntryPoint) -> Origin:
    try:
        name, version = (point.dist.name, point.dist.version) if point.dist else (None, None)
    except Exception:  # metadata that is missing or damaged
        name = version = None
    return Origin(point.name, name or "?", version or "?")


@functools.cache
def registry() -> Registry:
    """The process's registry, discovered on first use."""
    allowed = os.environ.get("UVR_PLUGINS")
    names = frozenset(filter(None, (n.strip() for n in allowed.split(",")))) if allowed is not None else None
    return discover(names, strict=os.environ.get("UVR_STRICT_PLUGINS") == "1")
