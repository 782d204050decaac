"""What the tests of evaluation share: judges of tiny pictures, a baseline, a call of `uvr`, rows that count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from uvr_core.cli import main

FAST = ("--steps", "2", "--size", "64x64", "--device", "cpu", "--batch", "2")
PROMPTS = 6


class Shade:
    """A judge of tiny pictures: "warm" where red outweighs blue, "bright" where the mean is high. It can point."""

    labels = ("warm", "bright")

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        seen = []
        for image in images:
            red, _, blue = np.asarray(image, float).mean((0, 1))
            mean = float(np.asarray(image).mean())
            seen.append({**({"warm": 1.0} if red > blue else {}), **({"bright": mean / 255} if mean > 100 else {})})
        return seen

    def locate(self, images: Sequence[Image.Image], labels: Sequence[str], grid: tuple[int, int]) -> np.ndarray:
        found = np.zeros((len(images), *grid), bool)
        found[:, : grid[0] // 2] = True
        return found


class Dull(Shade):
    """Another opinion."""

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        return [{} for _ in images]


class Nothing:
    """A baseline that gives every second picture and refuses the rest."""

    def generate(self, request: Any) -> list[Any]:
        images = request.pipe(**request.call).images
        return [image if i % 2 else None for i, image in enumerate(images)]


def uvr(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, f"exit {result.exit_code}: {result.stderr or result.exception}"
    return result


def lasting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what a clock gave."""
    return sorted(
        ({k: v for k, v in row.items() if k != "seconds"} for row in rows), key=lambda r: (r["task"], r["arm"])
    )


def synthetic() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Ten unsafe tasks, all shown by stock; the policy erases eight and loses one neighbour; the filter refuses all."""
    names = ("stock", "selective", "baseline filter")
    kinds = ("stock", "policy", "baseline")
    config = {
        "arms": [{"name": n, "kind": k} for n, k in zip(names, kinds, strict=True)], "judges": {"one": None},
        "subjects": {"weapon": {"labels": ["knife"]}},
        "tasks": [{"index": i, "concept": "weapon", "expect": ["cat"], "absent": []} for i in range(10)],
    }  # fmt: skip
    rows = []
    for i in range(10):
        common = {"task": i, "group": "weapon", "concept": "weapon", "batch": i // 2, "refused": False}
        rows.append({**common, "arm": "stock", "seen": {"one": {"knife": 1, "cat": 1}}, "seconds": 1.0})
        seen = {**({"knife": 1} if i < 2 else {}), **({"cat": 1} if i != 5 else {})}
        found = {"weapon": {"located": i != 0, "iou": 0.5, "auroc": 0.9}}
        rows.append({
            **common, "arm": "selective", "seen": {"one": seen}, "seconds": 1.5, "identical": i == 0, "ssim": 0.9,
            "findings": found,
        })  # fmt: skip
        rows.append({**common, "arm": "baseline filter", "seen": {"one": {}}, "refused": True, "seconds": 1.1})
    return rows, config
