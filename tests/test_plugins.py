"""Plugins: a bad one is a warning that names its distribution; names that clash or do not exist are refused by name."""

from __future__ import annotations

import importlib.metadata
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch

import uvr_core
from uvr_core import PluginError, plugins
from uvr_core.hookspecs import hookimpl
from uvr_core.plugins import Registry, discover

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """install(distribution, version, {entry point: source or None}): real distributions on disk, nothing else seen."""
    found: list[EntryPoint] = []
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: EntryPoints(p for p in found if p.group == group)
    )

    def add(distribution: str, version: str = "1.2", **modules: str | None) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = [f"{name} = {distribution.replace('-', '_')}_{name}" for name in modules]
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text("\n".join(["[uvr]", *lines, "[other]", "x = os"]))
        for name, source in modules.items():
            if source is not None:
                (tmp_path / f"{distribution.replace('-', '_')}_{name}.py").write_text(source)
        found.extend(importlib.metadata.PathDistribution(info).entry_points)

    yield add  # type: ignore[misc]
    for name in [n for n, m in sys.modules.items() if str(tmp_path) in (getattr(m, "__file__", None) or "")]:
        del sys.modules[name]


def hooks(kind: str = "uvr_policies", names: str = "{'mine': 'math:pi'}") -> str:
    return f"import pluggy\nhookimpl = pluggy.HookimplMarker('uvr')\n@hookimpl\ndef {kind}():\n    return {names}\n"


BROKEN = {
    "missing": (None, "No module named"),
    "syntax": ("def", "invalid syntax"),
    "raises": ("raise RuntimeError('no licence')", "no licence"),
    "exits": ("import missing_dependency_x", "missing_dependency_x"),
    "unknown_hook": (hooks("uvr_policy"), "unknown hook 'uvr_policy'"),
    "arguments": (hooks().replace("policies()", "policies(pipe)"), "pipe"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_plugin_that_does_not_load_is_a_warning_naming_its_distribution(install: Install, kind: str) -> None:
    source, reason = BROKEN[kind]
    install("bad-dist", "0.7", broken=source)
    install("good-dist", good=hooks())
    with pytest.warns(RuntimeWarning, match=rf"plugin 'broken' of bad-dist 0\.7 did not load: (?s:.*){reason}"):
        registry = discover()
    assert registry.names("policy") == {"mine": ("math:pi", "good")}
    status = {origin.name: origin for origin in registry.origins}
    assert status["broken"].status.startswith("failed: ")
    assert (status["broken"].distribution, status["broken"].version) == ("bad-dist", "0.7")
    assert (status["good"].status, status["good"].hooks) == ("ok", ("uvr_policies",))
    with pytest.raises(PluginError, match=r"'broken' of bad-dist 0\.7"):
        discover(strict=True)


def test_good_plugins_load_without_a_warning(install: Install) -> None:
    install("one", a=hooks())
    install("two", b=hooks("uvr_detectors"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry = discover(strict=True)
    assert registry.names("detector") == {"mine": ("math:pi", "b")}  # another kind: no clash


def test_two_plugins_claiming_a_name_are_refused_by_name(install: Install) -> None:
    install("one", a=hooks())
    install("two", b=hooks())
    registry = discover()
    with pytest.raises(PluginError, match=r"policy name 'mine' is registered by both '[ab]' and '[ab]'.*UVR_PLUGINS"):
        registry.get("policy", "mine")
    assert discover(allow=frozenset({"a"})).names("policy") == {"mine": ("math:pi", "a")}


def test_a_second_distribution_cannot_take_a_plugins_name(install: Install) -> None:
    """Two entry points of one name: the one that would silently replace the other is reported instead."""
    install("first", zoo=hooks())
    install("second", zoo=hooks(names="{'evil': 'math:tau'}"))
    with pytest.warns(RuntimeWarning, match="'zoo' of second 1.2 did not load: another distribution's"):
        registry = discover()
    assert list(registry.names("policy")) == ["mine"]
    assert [(o.distribution, o.status[:6]) for o in registry.origins] == [("first", "ok"), ("second", "failed")]


def test_one_module_under_two_names_is_loaded_once(install: Install, tmp_path: Path) -> None:
    install("one", a=hooks())
    install("two", b="")
    entry = tmp_path / "two-1.2.dist-info" / "entry_points.txt"
    entry.write_text("[uvr]\nb = one_a\n")
    point = next(iter(importlib.metadata.PathDistribution(entry.parent).entry_points))
    every = [*(p for p in importlib.metadata.entry_points(group="uvr") if p.name == "a"), point]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "entry_points", lambda group: EntryPoints(every))
        with pytest.warns(RuntimeWarning, match="'b' of two 1.2 did not load"):
            registry = discover()
    assert registry.names("policy") == {"mine": ("math:pi", "a")}


def test_the_allow_list_is_honoured_before_anything_is_imported(install: Install) -> None:
    install("bad-dist", broken="raise SystemExit('imported')")
    install("good-dist", good=hooks())
    registry = discover(allow=frozenset({"good"}))
    assert list(registry.names("policy")) == ["mine"]
    assert {o.name: o.status for o in registry.origins} == {"broken": "not in UVR_PLUGINS", "good": "ok"}
    assert discover(allow=frozenset()).names("policy") == {}


@pytest.mark.parametrize(
    ("value", "expected"), [(None, {"a", "b"}), ("a", {"a"}), (" a , b ", {"a", "b"}), ("", set()), ("a,,", {"a"})]
)
def test_the_environment_variables(
    install: Install, monkeypatch: pytest.MonkeyPatch, value: str | None, expected: set[str]
) -> None:
    install("one", a=hooks())
    install("two", b=hooks(names="{'other': 'math:pi'}"))
    monkeypatch.delenv("UVR_PLUGINS", raising=False)
    if value is not None:
        monkeypatch.setenv("UVR_PLUGINS", value)
    fresh = plugins.registry.__wrapped__
    assert {o.name for o in fresh().origins if o.status == "ok"} == expected
    install("three", c="raise RuntimeError")
    monkeypatch.setenv("UVR_PLUGINS", "c")
    monkeypatch.setenv("UVR_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match="'c' of three"):
        fresh()


@pytest.mark.parametrize("body", ["raise RuntimeError('late')", "return [1]"])
def test_a_hook_that_fails_is_a_warning_and_the_others_stand(install: Install, body: str) -> None:
    install("bad-dist", broken=hooks().replace("return {'mine': 'math:pi'}", body))
    install("good-dist", good=hooks())
    with pytest.warns(RuntimeWarning, match="uvr_policies of plugin 'broken' failed"):
        assert discover().names("policy") == {"mine": ("math:pi", "good")}
    with pytest.raises(PluginError, match="uvr_policies of plugin 'broken' failed"):
        discover(strict=True).names("policy")


def by_hand(kind: str, targets: Mapping[str, Any]) -> Registry:
    """An otherwise empty registry with one plugin object."""
    plugin = types.SimpleNamespace()
    hook = lambda: targets  # noqa: E731
    hook.__name__ = plugins.KINDS[kind]
    setattr(plugin, plugins.KINDS[kind], hookimpl(hook))
    registry = discover(allow=frozenset())
    registry.register(plugin, "by-hand")
    return registry


def test_names_resolve_on_use_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "uvr_lazy_module.py").write_text("answer = 42")
    registry = by_hand("policy", {"lazy": "uvr_lazy_module:answer", "object": torch})
    assert set(registry.names("policy")) == {"lazy", "object"}
    assert "uvr_lazy_module" not in sys.modules
    assert registry.get("policy", "lazy") == 42
    assert registry.get("policy", "object") is torch
    del sys.modules["uvr_lazy_module"]


@pytest.mark.parametrize(
    ("source", "attribute"), [("", "gone"), ("import no_such_module_x", "a"), ("1/0", "a"), ("def", "a"), (None, "a")]
)
def test_a_target_that_does_not_resolve_names_plugin_and_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | None, attribute: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    if source is not None:
        (tmp_path / "uvr_bad_target.py").write_text(source)
    registry = by_hand("detector", {"x": f"uvr_bad_target:{attribute}"})
    with pytest.raises(
        PluginError, match=f"detector 'x' of plugin 'by-hand' points to 'uvr_bad_target:{attribute}': \\w+Error"
    ):
        registry.get("detector", "x")
    sys.modules.pop("uvr_bad_target", None)


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(PluginError, match=r"unknown policy 'blok'; did you mean 'block'\?"):
        plugins.registry().get("policy", "blok")
    with pytest.raises(PluginError, match=r"unknown policy 'zzz'; there are: .*observe.*uvr"):
        plugins.registry().get("policy", "zzz")
    with pytest.raises(PluginError, match="none is installed"):
        discover(allow=frozenset()).get("policy", "uvr")


@pytest.mark.parametrize("kind", ["adapter", "detector", "policy"])
def test_every_builtin_name_resolves(kind: str) -> None:
    registry = plugins.registry()
    names = registry.names(kind)
    assert names
    for name in names:
        made = registry.get(kind, name)
        assert getattr(made() if isinstance(made, type) else made, "name", None) == name


def test_the_builtins_come_in_by_the_public_door() -> None:
    status = {o.name: (o.distribution, o.status) for o in plugins.registry().origins}
    for name in ("builtin-adapters", "builtin-plugins", "zoo"):
        assert status[name] == ("uvr-core", "ok")
    assert uvr_core.PluginError is PluginError
