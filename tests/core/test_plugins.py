"""Plugins: a bad one is a warning that names its distribution; names that clash or do not exist are refused by name."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from click.testing import CliRunner
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

import uvr_core
from uvr_core import PluginError, hookspecs, plugins
from uvr_core.cli import main
from uvr_core.hookspecs import hookimpl
from uvr_core.plugins import Registry, discover
from uvr_core.regulator import find_adapter

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
    "dependency": ("import missing_dependency_x", "missing_dependency_x"),
    "exits": ("raise SystemExit(3)", "3"),
    "mute": ("raise RuntimeError", r"RuntimeError\(\)"),
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


@pytest.mark.parametrize(("wrong", "hint"), [("god", "did you mean 'good'"), ("zzz", "there are: good, other")])
def test_a_name_in_the_allow_list_that_is_not_installed_is_an_error(install: Install, wrong: str, hint: str) -> None:
    """A typo would otherwise leave out the plugin that it was meant to keep."""
    install("good-dist", good=hooks(), other="raise SystemExit('imported')")
    with pytest.raises(PluginError, match=f"UVR_PLUGINS: no plugin '{wrong}' is installed; {hint}"):
        discover(allow=frozenset({wrong, "good"}))


def test_the_command_line_says_which_allowed_name_is_wrong(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("good-dist", good=hooks())
    monkeypatch.setenv("UVR_PLUGINS", "good,buitlin-plugins")
    monkeypatch.setattr(plugins, "registry", plugins.registry.__wrapped__)
    result = CliRunner().invoke(main, ["plugins"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "uvr: UVR_PLUGINS: no plugin 'buitlin-plugins' is installed" in result.stderr
    assert CliRunner().invoke(main, ["--help"]).exit_code == 0


@pytest.mark.parametrize("source", ["", hooks().replace("@hookimpl", "")])
def test_a_plugin_without_hooks_is_told_so(install: Install, source: str) -> None:
    install("idle-dist", idle=source)
    with pytest.warns(RuntimeWarning, match=r"plugin 'idle' of idle-dist 1\.2 implements no hook"):
        assert discover().origins[0].status == "no hooks"
    with pytest.raises(PluginError, match="implements no hook"):
        discover(strict=True)


def test_damaged_metadata_breaks_nothing(install: Install, tmp_path: Path) -> None:
    install("bad-dist", broken="1/0")
    install("good-dist", good=hooks())
    (tmp_path / "bad_dist-1.2.dist-info" / "METADATA").unlink()
    with pytest.warns(RuntimeWarning, match=r"plugin 'broken' of \S+ \S+ did not load: division by zero"):
        assert list(discover().names("policy")) == ["mine"]


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


@pytest.mark.parametrize(
    "body", ["raise RuntimeError('late')", "raise SystemExit", "return [1]", "return {1: 'math:pi'}", "return {'': 1}"]
)
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


# ---------------------------------------------------------------------------------------------- adapters


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


# ---------------------------------------------------------------------------------------------- the contract


def test_the_contract_fits_one_screen_and_is_whole() -> None:
    source = Path(hookspecs.__file__).read_text()
    declared = {name for name in dir(hookspecs) if name.startswith("uvr_")}
    assert declared == set(plugins.KINDS.values())
    assert all((getattr(hookspecs, name).__doc__ or "").startswith("{") for name in declared)
    assert len(source.splitlines()) <= 65


ALONE = """
import importlib, importlib.abc, pkgutil, sys
OUTER = {"uvr_adapters", "uvr_plugins", "uvr_zoo"}

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OUTER:
            raise ImportError(f"the core asked for {name}")

sys.meta_path.insert(0, Refuse())
import uvr_core
for module in pkgutil.walk_packages(uvr_core.__path__, "uvr_core."):
    importlib.import_module(module.name)
import torch
from diffusers import FluxTransformer2DModel
from uvr_core import Adapter, Layout, attach
model = FluxTransformer2DModel(
    patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
    joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
).eval()
adapter = Adapter(
    name="mine", model="FluxTransformer2DModel",
    attention=("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
    layout=lambda arguments: Layout(6, 6, (2, 3)), time=lambda arguments: arguments["timestep"],
)
given = dict(
    hidden_states=torch.randn(1, 6, 4), encoder_hidden_states=torch.randn(1, 3, 8),
    pooled_projections=torch.randn(1, 8), timestep=torch.ones(1), img_ids=torch.zeros(6, 3), txt_ids=torch.zeros(3, 3),
)
with torch.no_grad(), attach(model, adapter) as reg:
    model(**given)
    print("FIRED", reg.report.to_dict()["fired"])
print("OUTER", sorted(OUTER & {name.split(".")[0] for name in sys.modules}))
"""


def test_the_core_runs_without_adapters_plugins_and_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every module of uvr_core imports, and taps fire, in a process where the other packages cannot be imported."""
    monkeypatch.setenv("UVR_PLUGINS", "")
    done = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["FIRED 2", "OUTER []"]


# ---------------------------------------------------------------------------------------------- names


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
