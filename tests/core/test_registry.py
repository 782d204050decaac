"""The registry: names resolve on use, are checked against their hook, made ready in one place; adapters are found."""

from __future__ import annotations

import importlib
import json
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from click.testing import CliRunner
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

import uvr_core
from uvr_core import PluginError, plugins
from uvr_core.cli import main
from uvr_core.engine.lookup import find_adapter
from uvr_core.hookspecs import hookimpl
from uvr_core.plugins import Registry, discover


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
    (tmp_path / "uvr_lazy_module.py").write_text("def answer():\n    return 42")
    registry = by_hand("judge", {"lazy": "uvr_lazy_module:answer", "object": print})
    assert set(registry.names("judge")) == {"lazy", "object"}
    assert "uvr_lazy_module" not in sys.modules
    assert registry.get("judge", "lazy")() == 42
    assert registry.get("judge", "object") is print
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


class Needy:
    """A detector that cannot be made by name."""

    def __init__(self, weights: str, *more: int, scale: float = 1.0):
        self.weights = weights

    def scores(self, features, sigma, bank, probe):  # type: ignore[no-untyped-def]
        return features.mean(-1)


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        ("detector", "math:pi", r"'math:pi': expected a Detector \(it has a method 'scores'.* got an object of float"),
        ("detector", "fractions:Fraction", "expected a Detector .* got the class Fraction"),
        ("detector", Needy, "made without arguments, Needy needs weights"),
        ("policy", "math:sqrt", r"expected a Policy \(it has a method 'edit'"),
        ("adapter", "uvr_core.adapter:Adapter", "expected an object of uvr_core.Adapter, got the class Adapter"),
        ("adapter", {"name": "flux"}, "expected an object of uvr_core.Adapter, got an object of dict"),
        ("judge", "math:pi", "expected something callable"),
        ("model", "math:pi", "expected something callable"),
        ("command", ("math:sqrt", "roots"), "expected a click.Command"),
        ("policy", "math", 'expected "module:attribute"'),
        ("policy", ":pi", 'expected "module:attribute"'),
    ],
)
def test_a_target_of_the_wrong_type_is_refused(kind: str, target: object, message: str) -> None:
    registry = by_hand(kind, {"x": target})
    with pytest.raises(PluginError, match=f"(?s){kind} 'x' of plugin 'by-hand'.*{message}"):
        registry.get(kind, "x")


def test_targets_of_the_right_type_pass() -> None:
    assert by_hand("detector", {"x": Needy("w")}).get("detector", "x").weights == "w"
    assert by_hand("concept", {"x": "/somewhere/x.safetensors"}).get("concept", "x") == Path("/somewhere/x.safetensors")


@pytest.mark.parametrize(("kind", "target"), [("command", ("a:b",)), ("command", ("a:b", "c", "d")), ("concept", 7)])
def test_a_target_of_the_wrong_form_is_a_warning(kind: str, target: object) -> None:
    registry = by_hand(kind, {"x": target})
    with pytest.warns(RuntimeWarning, match=f"{plugins.KINDS[kind]} of plugin 'by-hand' failed: .*'x'"):
        assert registry.names(kind) == {}


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
        made = registry.make(kind, name)
        assert getattr(made.object, "name", None) == made.name == name


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Registry]:
    """crowd({name: target}): the built-in adapters, and a stranger's plugin with these, as the process's registry."""

    def make(targets: Mapping[str, Any], strict: bool = False) -> Registry:
        registry = attrs.evolve(by_hand("adapter", targets), strict=strict)
        registry.register(importlib.import_module("uvr_adapters"), "builtin-adapters")
        monkeypatch.setattr(plugins, "registry", lambda: registry)
        return registry

    return make


def bare(cls: type) -> Any:
    """An object of a model class without any weights: enough to be recognised."""
    return cls.__new__(cls)


@pytest.mark.parametrize("target", ["no_such_module_x:ADAPTER", "uvr_adapters.flux:GONE", "math:pi"])
def test_a_broken_adapter_harms_nobody_else(crowd: Callable[..., Registry], target: str) -> None:
    crowd({"broken": target})
    model = bare(FluxTransformer2DModel)
    with pytest.warns(RuntimeWarning, match=f"adapter 'broken' of plugin 'by-hand' points to '{target}'.*; skipped"):
        assert find_adapter(model).name == "flux"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_adapter(model, "flux").name == "flux"
    with pytest.raises(PluginError, match="adapter 'broken' of plugin 'by-hand'"):
        find_adapter(model, "broken")
    crowd({"broken": target}, strict=True)
    with pytest.raises(PluginError, match="adapter 'broken' of plugin 'by-hand'"):
        find_adapter(model)


def test_a_model_that_nobody_recognises_names_the_skipped(crowd: Callable[..., Registry]) -> None:
    crowd({"broken": "no_such_module_x:ADAPTER"})
    with (
        pytest.warns(RuntimeWarning, match="skipped"),
        pytest.raises(uvr_core.AdapterNotFound, match=r"recognises Linear.* do not load: 'broken'"),
    ):
        find_adapter(torch.nn.Linear(1, 1))


def test_two_adapters_that_recognise_one_model_are_refused_by_name(crowd: Callable[..., Registry]) -> None:
    crowd({"mine": attrs.evolve(plugins.registry().get("adapter", "flux"), name="mine")})
    with pytest.raises(PluginError, match=r"FluxTransformer2DModel: .*'mine' of plugin 'by-hand'.*pass adapter="):
        find_adapter(bare(FluxTransformer2DModel))
    assert find_adapter(bare(FluxTransformer2DModel), "mine").name == "mine"
    assert find_adapter(bare(SD3Transformer2DModel)).name == "sd3"


def test_the_adapter_of_a_subclass_goes_before_that_of_its_base(crowd: Callable[..., Registry]) -> None:
    kind = type("MyFlux", (FluxTransformer2DModel,), {})
    crowd({"mine": attrs.evolve(plugins.registry().get("adapter", "flux"), name="mine", model="MyFlux")})
    assert find_adapter(bare(kind)).name == "mine"
    assert find_adapter(bare(FluxTransformer2DModel)).name == "flux"


def test_uvr_adapters_lists_the_broken_one_too(crowd: Callable[..., Registry]) -> None:
    crowd({"broken": "no_such_module_x:ADAPTER"})
    result = CliRunner().invoke(main, ["adapters", "--json"])
    rows = {row["name"]: row for row in json.loads(result.stdout)["adapters"]}
    assert result.exit_code == 0
    assert (rows["flux"]["status"], rows["flux"]["model"]) == ("ok", "FluxTransformer2DModel")
    assert rows["broken"]["status"].startswith("failed: adapter 'broken' of plugin 'by-hand'")
    assert "adapter 'broken' of plugin 'by-hand'" in result.stderr
    assert "failed: adapter 'broken'" in " ".join(CliRunner().invoke(main, ["adapters"]).stdout.split())


def test_uvr_adapters_says_where_each_comes_from() -> None:
    rows = json.loads(CliRunner().invoke(main, ["adapters", "--json"]).stdout)["adapters"]
    (flux,) = (row for row in rows if row["name"] == "flux")
    origin = (flux["plugin"], flux["distribution"], flux["version"], flux["status"])
    assert origin == ("builtin-adapters", "uvr-core", uvr_core.__version__, "ok")


@attrs.frozen
class Mine:
    """A detector with a parameter."""

    power: float = 1.0
    name: str = "of mine"

    def scores(self, features, sigma, bank, probe):  # type: ignore[no-untyped-def]
        return features.mean(-1) * self.power


class Nameless:
    def scores(self, features, sigma, bank, probe):  # type: ignore[no-untyped-def]
        return features.mean(-1)


def test_a_class_is_made_and_an_object_is_taken_as_it_is() -> None:
    mine = Mine(3.0)
    registry = by_hand("detector", {"a": Mine, "b": mine, "c": Nameless})
    assert registry.make("detector", "a") == (Mine(), "a")
    assert registry.make("detector", "b").object is mine
    assert registry.make("detector", mine) == (mine, "of mine")
    assert registry.make("detector", Mine) == (Mine(), "of mine")
    assert registry.make("detector", Nameless()).name == "Nameless"
    assert registry.make("detector", "c").name == "c"


def test_options_make_the_object_and_change_no_other() -> None:
    mine = Mine(3.0)
    registry = by_hand("detector", {"a": Mine, "b": mine})
    assert registry.make("detector", "a", power=2.0).object == Mine(2.0)
    assert registry.make("detector", "b", power=2.0).object == Mine(2.0)
    assert mine.power == 3.0
    for name in ("a", "b"):
        with pytest.raises(TypeError, match="strength"):
            registry.make("detector", name, strength=2.0)


def test_a_constructor_that_ends_the_process_is_an_error() -> None:
    class Ends(Mine):
        def __init__(self) -> None:
            raise SystemExit(3)

    with pytest.raises(PluginError, match=r"detector 'a': its making ended with SystemExit\(3\)"):
        by_hand("detector", {"a": Ends}).make("detector", "a")


def test_a_judges_factory_is_called_once() -> None:
    def judge(images: Any) -> Any:
        return [{} for _ in images]

    class Pointer:
        def __call__(self, images: Any) -> Any:
            return [{} for _ in images]

        def locate(self, images: Any, labels: Any, grid: Any) -> Any:
            return None

    pointer = Pointer()
    registry = by_hand("judge", {"factory": lambda: judge, "class": Pointer, "object": pointer})
    assert registry.make("judge", "factory").object is judge
    assert isinstance(registry.make("judge", "class").object, Pointer)
    assert registry.make("judge", "object").object is pointer
    assert registry.make("judge", judge).object is judge
