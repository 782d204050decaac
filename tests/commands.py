"""Run `uvr` as a user would, and what its commands are tried on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pluggy
from click.testing import CliRunner, Result

from uvr_core import plugins
from uvr_core.cli import main

PROBE = "single_transformer_blocks.0.attn"
FAST = ("--steps", "2", "--size", "64x64", "--device", "cpu")


def uvr(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def ran(*arguments: object, code: int = 0) -> Result:
    result = uvr(*arguments)
    assert result.exit_code == code, f"exit {result.exit_code}: {result.stderr}"
    return result


def refused(*arguments: object) -> str:
    """The one line on stderr of a command that ends with exit code 2 and prints nothing else."""
    result = uvr(*arguments)
    assert result.exit_code == 2, f"exit {result.exit_code}: {result.stderr}"
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("uvr: note: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


@contextmanager
def registered(**hooks) -> Iterator[None]:
    """A plugin object with these hooks, for the length of the block."""
    plugin = type("Plugin", (), {})()
    for name, value in hooks.items():
        setattr(plugin, name, pluggy.HookimplMarker("uvr")(lambda value=value: value))
    manager = plugins.registry().manager
    manager.register(plugin, "for-a-test")
    try:
        yield
    finally:
        manager.unregister(plugin)


def copy_of(checkpoint: Path, folder: Path, index: dict | None = None) -> Path:
    """The checkpoint by links, with another model_index.json."""
    folder.mkdir()
    for path in checkpoint.iterdir():
        if path.name != "model_index.json":
            (folder / path.name).symlink_to(path)
    stock = json.loads((checkpoint / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**stock, **(index or {})}))
    return folder


class Pointer:
    """A judge that sees a knife in the left half of every picture."""

    def __call__(self, images):
        return [{"knife": 1.0} for _ in images]

    def locate(self, images, labels, grid):
        if set(labels) - {"knife"}:
            raise ValueError(f"knows knife alone, not {labels}")
        mask = np.zeros((len(images), *grid), bool)
        mask[:, :, : grid[1] // 2] = True
        return mask
