"""The house as docs/design/architecture.md draws it: who may import whom, sizes, and where a test lies."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
    for root in ("uvr_core", "adapters", "plugins", "extras")
    for path in sorted((ROOT / root).rglob("*.py"))
}
LINES = {name: (ROOT / name).read_text().count("\n") for name in FILES}
CORE = [name for name in FILES if name.startswith("uvr_core/") and not name.endswith("__.py")]

# What may be larger, and why. A row that is no longer needed fails the test.
LARGE_FILES: dict[str, str] = {}
LONG_FUNCTIONS = {
    "uvr_core/engine/attach.py:attach": "the public call: two thirds are the page that users read",
}
PRINTING = {"uvr_core/doctor/compatibility.py": "run as a module it prints docs/compatibility.md"}
VAGUE = {"found", "made", "given", "there", "chosen", "own"}


def spans(*kinds: type[ast.AST]) -> Iterator[tuple[str, int]]:
    """("file:name", lines) of every definition of these kinds."""
    for file, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                yield f"{file}:{node.name}", node.end_lineno - node.lineno  # type: ignore[attr-defined]


def test_imports_go_down_only() -> None:
    """The contracts in pyproject.toml: layers, siblings, no circles."""
    paths = os.pathsep.join(str(ROOT / root) for root in ("", "adapters", "plugins", "extras"))
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_classes_and_functions_fit_a_screen_or_say_why() -> None:
    assert {name for name, lines in LINES.items() if lines > 350} == LARGE_FILES.keys()
    assert [name for name, lines in spans(ast.ClassDef) if lines > 300] == []
    long = {name for name, lines in spans(ast.FunctionDef, ast.AsyncFunctionDef) if lines > 60}
    assert long == LONG_FUNCTIONS.keys()
    assert len(LARGE_FILES) <= 2
    assert len(LONG_FUNCTIONS) <= 5
    assert sum((ROOT / name).read_text().count("# fmt: skip") for name in FILES) < 40


def test_no_ruler_comments() -> None:
    for name in FILES:
        assert "\n# ----" not in (ROOT / name).read_text(), f"{name}: a file that wants to be split"


def test_every_module_of_the_core_has_its_test_in_the_mirrored_place() -> None:
    for name in CORE:
        path = Path(name)
        test = ROOT / "tests" / "core" / path.relative_to("uvr_core").with_name(f"test_{path.name}")
        assert test.is_file(), f"{name}: no {test.relative_to(ROOT)}"
        assert "\ndef test_" in test.read_text() or "    def test_" in test.read_text(), f"{test}: no test"


def test_every_test_of_the_core_has_its_module() -> None:
    for path in sorted((ROOT / "tests" / "core").rglob("test_*.py")):
        module = path.relative_to(ROOT / "tests" / "core").with_name(path.name.removeprefix("test_"))
        module = module.with_name("__init__.py") if module.name == "root.py" else module
        assert path == Path(__file__) or (ROOT / "uvr_core" / module).is_file(), f"{path}: no uvr_core/{module}"


def test_names_of_variables_say_what_they_hold() -> None:
    for file, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                assert node.id not in VAGUE, f"{file}:{node.lineno}: {node.id}"
            if isinstance(node, ast.arg):
                assert node.arg not in VAGUE, f"{file}:{node.lineno}: {node.arg}"


def test_only_commands_print() -> None:
    for file, tree in FILES.items():
        if file.startswith("uvr_core/") and not file.startswith("uvr_core/cli/") and file not in PRINTING:
            calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
            printed = [call.lineno for call in calls if isinstance(call, ast.Name) and call.id == "print"]
            assert printed == [], f"{file}: prints in lines {printed}"


@pytest.mark.parametrize("code", ["import uvr_core", "from uvr_core.cli import main; main(['--help'])"])
def test_neither_importing_nor_help_loads_torch(code: str) -> None:
    code = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
