"""Plugins: a bad one is a warning that names its distribution; names that clash or do not exist are refused by name."""

from __future__ import annotations

import functools
import importlib.metadata
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from click.testing import CliRunner

import uvr_core
from uvr_core import PluginError, plugins
from uvr_core.cli import main
from uvr_core.plugins import discover

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


def test_a_name_that_a_failed_plugin_would_have_brought_is_unknown_for_a_reason(install: Install) -> None:
    install("bad-dist", "0.7", broken="raise RuntimeError('no licence')")
    with pytest.warns(RuntimeWarning):
        registry = discover()
    with pytest.raises(PluginError, match=r"unknown policy 'mine'.*'broken' of bad-dist 0\.7 \(failed: no licence\)"):
        registry.get("policy", "mine")


class _Stop:
    """A server that ends when it is told to."""

    def stop(self, number: int, frame: object) -> None:
        raise self.kind

    def __init__(self, kind: type[BaseException]):
        self.kind = kind


SIGNALLED = "import os, signal\nos.kill(os.getpid(), signal.SIGUSR1)\n"


@pytest.mark.parametrize("kind", [SystemExit, TimeoutError, KeyboardInterrupt])
@pytest.mark.parametrize("when", ["import", "hook", "target"])
def test_a_signal_is_nobodys_fault(
    install: Install, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException], when: str
) -> None:
    """What its handler raises ends the discovery, which the next call does anew: no plugin is missing from then on."""
    sources = {
        "import": SIGNALLED + hooks(),
        "hook": hooks().replace("return", SIGNALLED.replace("\n", "; ") + "return"),
        "target": hooks(names="{'mine': 'signalled_dist_late:x'}"),
    }
    install("signalled-dist", good=sources[when], late=SIGNALLED)
    monkeypatch.setattr(plugins, "registry", functools.cache(plugins.registry.__wrapped__))
    monkeypatch.setenv("UVR_PLUGINS", "good")
    old = signal.signal(signal.SIGUSR1, _Stop(kind).stop)
    try:
        with pytest.raises(kind):
            plugins.registry().get("policy", "mine")
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        sys.modules.pop("signalled_dist_late", None)
        assert list(plugins.registry().names("policy")) == ["mine"]
    finally:
        signal.signal(signal.SIGUSR1, old)


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


def test_a_clash_leaves_the_other_names_of_its_kind(install: Install) -> None:
    install("one", a=hooks())
    install("two", b=hooks(names="{'mine': 'math:pi', 'other': 'math:e'}"))
    with pytest.warns(RuntimeWarning, match="'mine' is registered by both"):
        assert discover().names("policy") == {"other": ("math:e", "b")}


def test_an_allowed_name_that_two_distributions_install_loads_neither(install: Install) -> None:
    install("one", zoo="raise SystemExit('imported')")
    install("two", zoo="raise SystemExit('imported')")
    with pytest.raises(PluginError, match=r"UVR_PLUGINS allows 'zoo', and one 1\.2 and two 1\.2 both install"):
        discover(allow=frozenset({"zoo"}))


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
    layout=lambda arguments: Layout((2, 3)), time=lambda arguments: arguments["timestep"],
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


def test_the_builtins_come_in_by_the_public_door() -> None:
    status = {o.name: (o.distribution, o.status) for o in plugins.registry().origins}
    for name, distribution in (("builtin-adapters", "uvr-core"), ("builtin-plugins", "uvr-core"), ("zoo", "uvr-zoo")):
        assert status[name] == (distribution, "ok")
    assert uvr_core.PluginError is PluginError
