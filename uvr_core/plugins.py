"""Discovery through the entry-point group "uvr", and the process's registry.

`UVR_PLUGINS` (comma-separated entry-point names) is an allow-list: when set, only those load, and a name in it that is
not installed is an error, since a misspelt allow-list would leave out what it was meant to keep. With
`UVR_STRICT_PLUGINS=1` a plugin that fails to load raises instead of warning.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
from importlib.metadata import EntryPoint

import attrs
import pluggy

from . import hookspecs
from .errors import PluginError, did_you_mean
from .registry import BROKEN, KINDS, Named, Origin, Registry, raise_if_signalled

GROUP = "uvr"


def discover(allow: frozenset[str] | None = None, strict: bool = False) -> Registry:
    """Load every plugin of the entry-point group; a bad one is a warning that names its distribution.

    Args:
        allow: entry points to load; None: all. Those left out are not imported.
        strict: a bad plugin raises.

    Raises:
        PluginError: `allow` names a plugin that is not installed, or that two distributions install; or, when strict,
            a plugin is bad.
    """
    manager = pluggy.PluginManager("uvr")
    manager.add_hookspecs(hookspecs)
    registry = Registry(manager, strict=strict)
    points = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name)
    installed = {point.name for point in points}
    if unknown := sorted((allow or frozenset()) - installed):
        hints = " ".join(f"no plugin {name!r} is installed{did_you_mean(name, installed)}" for name in unknown)
        raise PluginError(f"UVR_PLUGINS: {hints} Correct the allow-list, or install what it names")
    for name in allow or ():
        if len(claimants := [_origin(point) for point in points if point.name == name]) > 1:
            distributions = " and ".join(f"{origin.distribution} {origin.version}" for origin in claimants)
            raise PluginError(
                f"UVR_PLUGINS allows {name!r}, and {distributions} both install a plugin of that name: neither is "
                "loaded; uninstall one"
            )
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
            raise_if_signalled(error)
            if not taken and manager.has_plugin(point.name):
                manager.unregister(name=point.name)
            reason = str(error) or repr(error)
            registry.complain(f"{origin} did not load: {reason}", error)
            registry.origins.append(attrs.evolve(origin, status=f"failed: {reason}"))
            continue
        hooks = tuple(sorted(caller.name for caller in manager.get_hookcallers(plugin) or ()))
        if not hooks:
            message = f"{origin} implements no hook; is @hookimpl missing, or its entry point the wrong module?"
            registry.complain(message, PluginError(message))
        registry.origins.append(attrs.evolve(origin, status="ok" if hooks else "no hooks", hooks=hooks))
    return registry


def _origin(point: EntryPoint) -> Origin:
    try:
        name, version = (point.dist.name, point.dist.version) if point.dist else (None, None)
    except Exception as error:  # metadata that is missing or damaged
        raise_if_signalled(error)
        name = version = None
    return Origin(point.name, name or "?", version or "?")


@functools.cache
def registry() -> Registry:
    """The process's registry, discovered on first use."""
    allowed = os.environ.get("UVR_PLUGINS")
    names = frozenset(filter(None, (n.strip() for n in allowed.split(",")))) if allowed is not None else None
    return discover(names, strict=os.environ.get("UVR_STRICT_PLUGINS") == "1")


__all__ = ["BROKEN", "GROUP", "KINDS", "Named", "Origin", "Registry", "discover", "registry"]
