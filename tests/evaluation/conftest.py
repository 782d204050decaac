"""A checkpoint, a prompt set and a concept of the tests of evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pluggy
import pytest
from judged import PROMPTS, Dull, Nothing, Shade
from runner import make_bank
from tiny import tiny_flux

from uvr_core import plugins


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-eval") / "flux"
    tiny_flux().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def judges() -> Iterator[None]:
    """The judges "shade" and "dull" and the baseline "every-second" come in through the door."""
    hookimpl = pluggy.HookimplMarker("uvr")

    class Plugin:
        @hookimpl
        def uvr_judges(self) -> dict[str, object]:
            return {"shade": Shade, "dull": Dull}

        @hookimpl
        def uvr_baselines(self) -> dict[str, object]:
            return {"every-second": Nothing}

    manager, plugin = plugins.registry().manager, Plugin()
    manager.register(plugin, "for-evaluation")
    yield
    manager.unregister(plugin)


@pytest.fixture
def concept(tmp_path: Path) -> Path:
    return make_bank("weapon", threshold=-1e9).save(tmp_path / "weapon.safetensors")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"a cat number {i}", "concept": "weapon" if i % 2 else "", "seed": 10 + i, "expect": ["bright"]}
        for i in range(PROMPTS)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "subjects.toml").write_text('[weapon]\nlabels = ["warm"]\nwords = ["knife"]\n')
    return path
