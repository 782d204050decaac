"""The guides in docs/ do what they say: every block runs, in order, and prints what is shown below it.

A guide's ```python blocks share one namespace and an empty working folder; a ```console block runs its `$ ` lines in a
shell. A ```text block is what the block before it printed; what prints nothing has none. There `...` stands for any
text, a decimal fraction may differ by one unit in its last place, and a count `k of n` by one: arithmetic differs
between machines.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import time
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import torch
from diffusers import Lumina2Transformer2DModel

from uvr_core import plugins
from uvr_core.adapter import Adapter, Arguments, Layout
from uvr_core.engine.attach import attach
from uvr_core.errors import AdapterMismatch, ConformanceError
from uvr_core.testing import Example, check_adapter

ROOT = Path(__file__).parents[2]
GUIDES = ("port-a-model", "runtime", "write-a-policy", "write-a-detector", "write-a-baseline")
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
ANY, FRACTION, COUNT = re.escape("..."), r"\d+\.\d+", r"\d+(?= of \d)"


def blocks(path: Path) -> list[tuple[str, str, int]]:
    """(language, contents, line of the file on which the contents begin) of the fenced blocks."""
    text = path.read_text()
    return [(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in BLOCK.finditer(text)]


def agrees(shown: str, got: str) -> bool:
    """Whether an output is the one shown, by the rules above."""
    pattern, numbers = "", []
    for index, part in enumerate(re.split(f"({ANY}|{FRACTION}|{COUNT})", shown.strip())):
        if index % 2 == 0:  # between what the rules are about
            pattern += re.escape(part)
        elif part == "...":
            pattern += ".*?"
        else:
            pattern += f"({FRACTION})" if "." in part else r"(\d+)"
            numbers.append(part)
    found = re.fullmatch(pattern, got.strip(), re.S)
    if found is None:
        return False
    units = [10.0 ** -len(n.partition(".")[2]) for n in numbers]
    return all(abs(float(a) - float(b)) <= 1.01 * u for a, b, u in zip(found.groups(), numbers, units, strict=True))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """An empty module, in an empty folder, on one thread; the registry is left as it was."""
    threads, manager = torch.get_num_threads(), plugins.registry().manager
    before = manager.get_plugins()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # a guide may import a file that it wrote
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = types.ModuleType("guide")
    monkeypatch.setitem(sys.modules, made.__name__, made)  # where attrs and pickle look for a class's module
    yield made
    for plugin in manager.get_plugins() - before:
        manager.unregister(plugin)
    for name in [n for n, m in sys.modules.items() if (getattr(m, "__file__", "") or "").startswith(str(tmp_path))]:
        del sys.modules[name]
    torch.set_num_threads(threads)


def console(source: str) -> str:
    """A shell session: each `$ ` line, then what the command says."""
    said = ""
    for command in re.findall(r"^\$ (.*)$", source, re.M):
        done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        output = re.sub(r"^uvr: .* of \d+ after .*\n", "", done.stdout, flags=re.M)  # progress, on a slow machine
        said += f"$ {command}\n{output}"
    return said


def run(path: Path, module: types.ModuleType) -> None:
    """Run a page's blocks and hold what they print against what it shows."""
    found = blocks(path)
    for (language, source, line), (after, shown, _) in zip(found, [*found[1:], ("", "", 0)], strict=True):
        if language == "console":
            got, shown = console(source), source
        elif language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as said:
                # blank lines in front: a traceback then names the line of the page
                exec(compile("\n" * (line - 1) + source, str(path), "exec"), module.__dict__)
            got, shown = said.getvalue(), shown if after == "text" else ""
        elif language == "toml":
            tomllib.loads(source)
            continue
        else:
            continue
        if not agrees(shown, got):
            raise AssertionError(f"{path.name}, line {line}: shown\n{shown}\ngot\n{got}")


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_runs_and_prints_what_it_shows(name: str, module: types.ModuleType) -> None:
    start = time.monotonic()
    run(ROOT / "docs" / f"{name}.md", module)
    print(f"{name}: {time.monotonic() - start:.1f} s")


@pytest.mark.slow
def test_the_guide_to_evaluation_runs(module: types.ModuleType) -> None:
    run(ROOT / "docs" / "evaluate.md", module)


def test_the_snippets_of_contributing_run(module: types.ModuleType) -> None:
    run(ROOT / "CONTRIBUTING.md", module)
    assert module.MYDIT.model == "MyDiTTransformer2DModel"


@pytest.mark.parametrize("name", GUIDES)
def test_every_output_of_a_guide_is_of_a_block(name: str) -> None:
    """A ```text block after anything but code would be shown and never checked."""
    kinds = [language for language, _, _ in blocks(ROOT / "docs" / f"{name}.md")]
    assert kinds.count("python") >= 3
    assert set(kinds) <= {"python", "text", "console", "toml"}
    assert all(before == "python" for before, kind in zip(["", *kinds], kinds, strict=False) if kind == "text")


@pytest.mark.parametrize("name", GUIDES)
def test_the_messages_that_a_guide_quotes_are_in_the_source(name: str) -> None:
    """Of its last section, a table of messages; `...` stands for what is filled in."""
    text = (ROOT / "docs" / f"{name}.md").read_text()
    quoted = re.findall(r"^\| `(.+?)` \|", text.partition("## What can go wrong")[2], re.M)
    assert len(quoted) >= 4
    source = "".join(path.read_text() for top in ("uvr_core", "plugins") for path in (ROOT / top).rglob("*.py"))
    source = re.sub(r'"\s*f?"', "", source)  # strings in several parts
    missing = [part for message in quoted for part in message.split("...") if part.strip() and part not in source]
    assert not missing


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(BLOCK, "", path.read_text())
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in link):
        there = (path.parent / target) if target else path
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, anchor


def test_the_readme_is_read_in_three_minutes() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 700


def test_the_picture_of_the_rooms_is_that_of_the_source() -> None:
    """If not: `python tools/architecture.py`. It raises if rooms import each other in a circle."""
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "tools" / "architecture.py")
    assert spec is not None
    assert spec.loader is not None
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    assert drawing.PICTURE.read_text() == drawing.svg(drawing.graph())
    with pytest.raises(ValueError, match="imports in a circle: a > b > a"):
        drawing.floors({"a": {"b"}, "b": {"a"}})


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(path: Path) -> None:
    """A file that moves takes its mention along; what was measured long ago may name what it was measured with."""
    named = re.findall(r"`((?:uvr_core|adapters|plugins|extras|tests|tools|docs)/[\w/.-]+)`", path.read_text())
    missing = [name for name in named if not (ROOT / name).exists() and not re.search("[A-Z]{4}", name)]
    assert not missing or path.name == "measurements.md"


def test_what_the_guide_says_of_lumina_2() -> None:
    """Texts of unequal length in one batch: the checks see it, and a layout that refuses them is heard."""

    def make() -> Example:
        torch.manual_seed(0)
        model = Lumina2Transformer2DModel(
            sample_size=16, in_channels=4, hidden_size=32, num_layers=2, num_refiner_layers=1, num_attention_heads=2,
            num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 6, 6), axes_lens=(32, 32, 32), cap_feat_dim=8,
        ).eval()  # fmt: skip

        def inputs(height: int, width: int, batch: int, sigma: float) -> dict[str, torch.Tensor]:
            lengths = torch.tensor([7 - i % 3 for i in range(batch)])
            return {
                "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
                "encoder_hidden_states": torch.randn(batch, 9, 8),
                "encoder_attention_mask": torch.arange(9) < lengths[:, None],
                "timestep": torch.full((batch,), 1 - sigma),
            }

        return Example(model, inputs)

    def layout(arguments: Arguments) -> Layout:
        height, width = (side // 2 for side in arguments["hidden_states"].shape[-2:])
        return Layout((height, width))

    def careful(arguments: Arguments) -> Layout:
        if len(set(arguments["encoder_attention_mask"].sum(1).tolist())) > 1:
            raise AdapterMismatch("lumina2: the texts of one batch differ in length")
        return layout(arguments)

    adapter = Adapter(
        "lumina2", "Lumina2Transformer2DModel", ("layers.*.attn",), layout, lambda arguments: 1 - arguments["timestep"]
    )
    with pytest.raises(ConformanceError, match=r"last-block: .* patch 0 lies at row"):
        check_adapter(adapter, make)
    example = make()
    with attach(example.model, attrs.evolve(adapter, layout=careful)):
        example.run(example.arguments((2, 3)), (2, 3))
        with pytest.raises(AdapterMismatch, match="differ in length"):
            example.run(example.arguments((2, 3), batch=2), (2, 3))


@pytest.mark.parametrize(
    ("shown", "got", "same"),
    [
        ("a 0.97 b", "a 0.98 b\n", True),
        ("a 0.97 b", "a 0.99 b", False),
        ("a 0.97 b", "a 0.97 c", False),
        ("erased 14 of 16", "erased 13 of 16", True),
        ("erased 14 of 16", "erased 12 of 16", False),
        ("erased 14 of 16", "erased 14 of 17", False),
        ("4 taps", "5 taps", False),
        ("begin\n...\nend", "begin\nx\ny\nend", True),
        ("begin\n...\nend", "begin\nx\ny", False),
        ("", "something", False),
        ("f(x) [1, 2]", "f(x) [1, 2]", True),
    ],
)
def test_outputs_are_compared(shown: str, got: str, same: bool) -> None:
    assert agrees(shown, got) is same


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "page.md, line 2: shown\n2"),
        ("```python\nprint(1)\n```\n", "got\n1"),
        ("```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```text\n1\n```\n", ""),
        ("```console\n$ echo a b\nb\n```\n", r"got\n\$ echo a b\na b"),
    ],
)
def test_a_wrong_output_is_caught(page: str, message: str, module: types.ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(page)
    with pytest.raises(AssertionError, match=message) if message else contextlib.nullcontext():
        run(path, module)
