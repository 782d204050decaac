"""What a stranger installs: the two wheels' contents, their metadata, and a run of them away from the checkout."""

import ast
import configparser
import json
import os
import re
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path

import installed
import pytest
import torch
from installed import PROJECTS, ROOT, run

import uvr_core
from uvr_core.adapter import Layout

# Two wheels are built and installed, on slow machines too: no limit of time on any test here.
pytestmark = pytest.mark.timeout(0)

CORE = {"uvr_core": ROOT, "uvr_adapters": ROOT / "adapters", "uvr_plugins": ROOT / "plugins"}
ZOO = {"uvr_zoo": ROOT / "extras"}
# What lies under extras/ ships with the core, but for a folder that is a distribution of its own.
CORE |= {folder.name: ROOT / "extras" for folder in (ROOT / "extras").glob("uvr_*") if folder.name not in ZOO}
PACKAGES = {"uvr-core": CORE, "uvr-zoo": ZOO}
OUTER = {*CORE, *ZOO} - {"uvr_core"}
METADATA = {
    name: tomllib.loads((folder / "pyproject.toml").read_text())["project"] for name, folder in PROJECTS.items()
}
PROJECT = METADATA["uvr-core"]
BOTH = pytest.mark.parametrize("distribution", sorted(PROJECTS))
# Files that make the folder a distribution or are for those who change it, and stay out of its wheel.
OF_THE_SOURCE = {
    f"uvr_zoo/{name}" for name in ("LICENSE", "NOTICE", "README.md", "pyproject.toml", "freeform/README.md")
}


def shipped_files(packages: dict[str, Path]) -> set[str]:
    """Files of some packages, named as inside the wheel; what git ignores does not ship."""
    folders = [str((root / name).relative_to(ROOT)) for name, root in packages.items()]
    try:
        listing = run("git", "ls-files", "-z", "-co", "--exclude-standard", "--", *folders, cwd=ROOT)
        paths = [ROOT / line for line in listing.split("\0") if line]
    except (AssertionError, FileNotFoundError):  # an unpacked sdist, or no git
        paths = [p for f in folders for p in (ROOT / f).rglob("*") if "__pycache__" not in p.parts]
    names = set()
    for path in paths:
        for name, root in packages.items():
            if path.is_file() and path.is_relative_to(root / name):
                names.add(path.relative_to(root).as_posix())
    return names - OF_THE_SOURCE


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> dict[str, Path]:
    """Distribution -> its wheel."""
    return {name: installed.wheel(tmp_path_factory.getbasetemp(), name) for name in PROJECTS}


@pytest.fixture(scope="module")
def contents(wheel) -> dict[str, dict[str, int]]:
    """Distribution -> name of a file -> its size in bytes."""
    sizes = {}
    for name, path in wheel.items():
        with zipfile.ZipFile(path) as archive:
            sizes[name] = {item.filename: item.file_size for item in archive.infolist() if not item.is_dir()}
    return sizes


def info(distribution: str) -> str:
    return f"{distribution.replace('-', '_')}-{METADATA[distribution]['version']}.dist-info"


def test_version_is_one():
    """Of both distributions, and each asks for the other of its own release."""
    assert {project["version"] for project in METADATA.values()} == {uvr_core.__version__}
    assert PROJECT["optional-dependencies"]["zoo"] == [f"uvr-zoo=={uvr_core.__version__}"]
    assert f"uvr-core=={uvr_core.__version__}" in METADATA["uvr-zoo"]["dependencies"]


@BOTH
def test_wheels_hold_their_packages_and_nothing_else(contents, distribution):
    names = set(contents[distribution])
    assert {name.split("/")[0] for name in names} == {*PACKAGES[distribution], info(distribution)}
    assert {f"{info(distribution)}/licenses/{name}" for name in ("LICENSE", "NOTICE")} <= names
    unwanted = re.compile(r"(^|/)(tests?|__pycache__)/|(^|/)test_\w+\.py$")
    assert [name for name in names if unwanted.search(name)] == []


def test_the_core_wheel_is_small_and_holds_no_data(wheel, contents):
    assert wheel["uvr-core"].stat().st_size < 1_000_000
    assert [name for name in contents["uvr-core"] if name.endswith((".safetensors", ".png", ".parquet"))] == []


@BOTH
def test_wheel_holds_every_file_of_the_packages(contents, distribution):
    """Nothing is lost on the way: neither data files nor a package without an __init__."""
    packages = PACKAGES[distribution]
    packed = {name for name in contents[distribution] if name.split("/")[0] in packages}
    shipped = shipped_files(packages)
    assert sorted(shipped - packed) == []
    assert sorted(packed - shipped) == []


@pytest.mark.parametrize("suffix", [".png", ".json", ".safetensors", ".xz"])
def test_wheel_holds_zoo_data(contents, suffix):
    sizes = [size for name, size in contents["uvr-zoo"].items() if name.startswith("uvr_zoo/data/") and suffix in name]
    assert sizes
    assert all(size > 0 for size in sizes)


@BOTH
def test_wheel_metadata(wheel, distribution):
    with zipfile.ZipFile(wheel[distribution]) as archive:
        metadata = HeaderParser().parsestr(archive.read(f"{info(distribution)}/METADATA").decode())
        points = configparser.ConfigParser()
        points.optionxform = str  # type: ignore[assignment,method-assign]
        points.read_string(archive.read(f"{info(distribution)}/entry_points.txt").decode())
        modules = set(archive.namelist())
    assert metadata["Name"] == distribution
    assert metadata["License-Expression"].startswith("Apache-2.0")
    assert set(METADATA[distribution].get("optional-dependencies", {})) == set(metadata.get_all("Provides-Extra", []))
    targets = [target for section in points.values() for target in section.values()]
    scripts = METADATA[distribution].get("scripts", {})
    assert len(targets) == len(METADATA[distribution]["entry-points"]["uvr"]) + len(scripts) > 0
    for target in targets:
        stem = target.split(":")[0].replace(".", "/")
        assert {f"{stem}.py", f"{stem}/__init__.py"} & modules, f"entry point {target} leads nowhere"


def test_the_zoo_names_its_licences():
    """Those of the sprites too, in the distribution that holds them and in no other."""
    assert METADATA["uvr-zoo"]["license"] == "Apache-2.0 AND MIT AND CC-BY-4.0"
    notice = (PROJECTS["uvr-zoo"] / "NOTICE").read_text()
    assert all(words in notice for words in ("Apache License", "MIT License", "CC BY 4.0"))
    assert (PROJECTS["uvr-zoo"] / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory) -> Path:
    return installed.environment(tmp_path_factory.getbasetemp(), "clean")


@pytest.fixture
def away(tmp_path) -> dict:
    return installed.away(tmp_path)


@pytest.mark.wheel
def test_installed_wheel_imports_from_its_own_environment(clean_python, away):
    names = sorted([*CORE, *ZOO])
    code = f"import importlib as i, json; print(json.dumps([i.import_module(n).__file__ for n in {names}]))"
    paths = json.loads(run(clean_python, "-c", code, **away).splitlines()[-1])
    for name, path in zip(names, paths, strict=True):
        assert Path(path).is_relative_to(clean_python.parents[1]), f"{name} came from {path}"


@pytest.mark.wheel
@pytest.mark.slow
def test_installed_wheel_runs_the_demo(clean_python, away):
    out = away["cwd"] / "demo"
    run(clean_python.parent / "uvr", "demo", "--quick", "--pipelines", "flux", "--out", out, **away)
    assert json.loads((out / "results.json").read_text())
    assert (out / "contact.png").read_bytes().startswith(b"\x89PNG")


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, and of every "module:Class" or import_module("module") by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__", "find_spec", "files"}:
                yield node.lineno, str(node.args[0].value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            reference = re.fullmatch(r"([\w.]+):[A-Za-z_]\w*", node.value)
            if reference:
                yield node.lineno, reference[1]


def test_the_core_imports_nothing_from_outside():
    """uvr_core meets adapters, plugins and zoo only through the plugin manager."""
    files = sorted((ROOT / "uvr_core").rglob("*.py"))
    assert files
    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files
        for line, module in imported(ast.parse(path.read_text(), filename=str(path)))
        if module.split(".")[0] in OUTER
    ]
    assert faults == []


@pytest.mark.parametrize(
    "source",
    [
        "import uvr_zoo.judge as j",
        "def late():\n    from uvr_adapters.flux import FLUX",
        "importlib.import_module('uvr_plugins')",
        "lazy = 'uvr_adapters.flux:FLUX'",
    ],
)
def test_import_direction_check_sees(source):
    assert any(module.split(".")[0] in OUTER for _, module in imported(ast.parse(source)))


def test_contributing_adapter_runs():
    """The sketch in CONTRIBUTING.md is a valid adapter, and as short as its heading says."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (sketch,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict = {}
    exec(compile(sketch, "CONTRIBUTING.md", "exec"), names)
    adapter = names["uvr_adapters"]()["mydit"]
    sample = {"hidden_states": torch.zeros(2, 16, 8, 12), "timestep": torch.tensor([1000.0, 250.0])}
    assert adapter.layout(sample) == Layout((4, 6))
    assert adapter.time(sample).tolist() == [1.0, 0.25]
    lines = [line for line in sketch.splitlines() if line.strip()]
    assert len(lines) <= 20


PINNED = dict(
    line.split("==")
    for line in (ROOT / "downstream" / "oldest.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
BOUNDS = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups() for requirement in PROJECT["dependencies"])


def release(version: str) -> tuple[int, ...]:
    """0.37.0 and 0.37 are one release."""
    return tuple(int(part) for part in (*version.split("."), "0", "0")[:3])


def test_the_oldest_releases_tested_are_the_bounds_and_the_docs_say_so():
    text = (ROOT / "docs" / "versions.md").read_text()
    assert set(PINNED) == {"diffusers", "transformers"}
    for name, version in PINNED.items():
        assert release(version) == release(BOUNDS[name]), f"{name}: oldest.txt and pyproject.toml disagree"
    rows = {row[0]: row[1:] for row in re.findall(r"^\| (\w+) +\| (\S+) +\| ([^|]+?) +\| ", text, flags=re.MULTILINE)}
    for name in ("diffusers", "transformers", "torch"):
        bound, oldest = rows[name]
        assert bound == f">={BOUNDS[name]}"
        assert release(oldest) == release(PINNED.get(name, BOUNDS[name]))


def test_the_examples_ask_for_no_other_diffusers():
    for path in sorted((ROOT / "docs" / "examples").glob("*/pyproject.toml")):
        asked = re.findall(r'"(diffusers|transformers|torch)>=([\d.]+)"', path.read_text())
        assert asked
        assert {(name, release(version)) for name, version in asked} <= {(n, release(v)) for n, v in BOUNDS.items()}


def test_ci_runs_the_newest_and_the_oldest():
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make")]
    assert commands == ["make test", "make test-int8", "make test-oldest"]
    recipe = run("make", "-n", "test-oldest", "OLDEST=.venv-none", cwd=ROOT)
    assert "--constraint downstream/oldest.txt" in recipe
    named = re.findall(r"\btests/\S+", recipe)
    assert len(named) >= 4
    assert all((ROOT / name).exists() for name in named)


def test_the_workflow_runs_what_a_developer_runs():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r"^on:\n  push:\n.*?\n  pull_request:$", workflow, re.M | re.S)
    commands = re.findall(r"- run: (.*)", workflow)
    assert commands == [".ci/run", "make test-fast demo TORCH_INDEX="]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    recipe = run("make", "-n", "test-fast", ".venv/.stamp", "TORCH_INDEX=", "-o", ".venv/.stamp", cwd=ROOT)
    assert "not slow and not wheel" in recipe


def test_the_upstream_workflow_names_what_the_script_takes():
    script = ROOT / "downstream" / "main.sh"
    workflow = (ROOT / ".github" / "workflows" / "upstream.yml").read_text()
    (matrix,) = re.findall(r"upstream: (\[.*\])", workflow)
    for entry in json.loads(matrix):
        for name in entry.split():
            assert f"{name} |" in script.read_text() or f"| {name})" in script.read_text()
    with pytest.raises(AssertionError, match="expected diffusers, transformers or torch, got 'numpy'"):
        run("sh", script, "numpy", cwd=ROOT)
