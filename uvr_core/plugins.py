"""The plugin manager: discovery through the entry-point group "uvr", lazy resolution, errors that name their origin.

`UVR_PLUGINS` (comma-separated entry-point names) is an allow-list: when set, only those load. With
`UVR_STRICT_PLUGINS=1` a plugin that fails to load raises instead of warning.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import warnings
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
}


@attrs.frozen
class Origin:
    """Where a plugin came from and what became of it."""

    name: str
    distribution: str
    version: str
    status: str = "ok"
    hooks: tuple[str, ...] = ()


@attrs.frozen
class Registry:
    """A pluggy manager with the record of what was discovered."""

    manager: pluggy.PluginManager
    origins: list[Origin] = attrs.field(factory=list)
    strict: bool = False

    def names(self, kind: str) -> dict[str, tuple[object, str]]:
        """{name: (target, plugin name)} of one kind; a name claimed twice is refused.

        A hook that raises is a warning that names its plugin (strict: an error), and the others' names stand.
        """
        found: dict[str, tuple[object, str]] = {}
        hook = getattr(self.manager.hook, KINDS[kind])
        for implementation in hook.get_hookimpls():
            try:
                targets = dict(implementation.function() or {})
            except Exception as error:
                message = f"{KINDS[kind]} of plugin {implementation.plugin_name!r} failed: {error!r}"
                if self.strict:
                    raise PluginError(message) from error
                warnings.warn(message, RuntimeWarning, stacklevel=2)
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
        """The object registered under a name; "module:attribute" is imported now.

        Raises:
            PluginError: unknown name, or its module fails to import.
        """
        known = self.names(kind)
        if name not in known:
            raise PluginError(f"unknown {kind} {name!r}{did_you_mean(name, known)}")
        target, origin = known[name]
        if kind == "command" and isinstance(target, tuple):
            target = target[0]  # the other half is its one-line help
        if not isinstance(target, str):
            return target
        module, _, attribute = target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:  # a module may raise anything while it is imported
            raise PluginError(f"{kind} {name!r} of plugin {origin!r} points to {target!r}: {error!r}") from error

    def register(self, plugin: object, name: str | None = None) -> None:
        """Register a plugin object or module by hand (tests, notebooks)."""
        self.manager.register(plugin, name)


def discover(allow: frozenset[str] | None = None, strict: bool = False) -> Registry:
    """Load every plugin of the entry-point group; a bad one is a warning that names its distribution."""
    manager = pluggy.PluginManager("uvr")
    manager.add_hookspecs(hookspecs)
    registry = Registry(manager, strict=strict)
    points = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name)
    for point in points:
        distribution = point.dist.name if point.dist else "?"
        version = point.dist.version if point.dist else "?"
        if allow is not None and point.name not in allow:
            registry.origins.append(Origin(point.name, distribution, version, "not in UVR_PLUGINS"))
            continue
        taken = manager.has_plugin(point.name)
        try:
            if taken:
                raise PluginError("another distribution's plugin has that name")
            plugin = point.load()
            manager.register(plugin, point.name)
            manager.check_pending()
        except Exception as error:
            if not taken and manager.has_plugin(point.name):
                manager.unregister(name=point.name)
            message = f"plugin {point.name!r} of {distribution} {version} did not load: {error}"
            if strict:
                raise PluginError(message) from error
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            registry.origins.append(Origin(point.name, distribution, version, f"failed: {error}"))
            continue
        hooks = tuple(sorted(caller.name for caller in manager.get_hookcallers(plugin) or ()))
        registry.origins.append(Origin(point.name, distribution, version, "ok", hooks))
    return registry


@functools.cache
def registry() -> Registry:
    """The process's registry, discovered on first use."""
    allowed = os.environ.get("UVR_PLUGINS")
    names = frozenset(filter(None, (n.strip() for n in allowed.split(",")))) if allowed is not None else None
    return discover(names, strict=os.environ.get("UVR_STRICT_PLUGINS") == "1")
