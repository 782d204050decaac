"""check_judge: what breaks the contract is caught by the check that should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conformance import failed

from uvr_core.testing import check_judge
from uvr_core.testing.judge import pictures


class Good:
    """Sees "bright" in bright pictures."""

    labels = ("bright",)

    def __call__(self, images: Any) -> Any:
        means = [float(np.asarray(image.convert("L")).mean()) / 255 for image in images]
        return [{"bright": m} if m > 0.3 else {} for m in means]


class Unlisted(Good):
    labels = ("dark",)


class Short(Good):
    def __call__(self, images: Any) -> Any:
        return super().__call__(images)[:1]


class NeedsOne(Good):
    def __call__(self, images: Any) -> Any:
        assert images[0]
        return super().__call__(images)


class Relative(Good):
    def __call__(self, images: Any) -> Any:
        rows = super().__call__(images)
        top = max((row["bright"] for row in rows if row), default=1.0)
        return [{k: v / top for k, v in row.items()} for row in rows]


class Moody(Good):
    def __call__(self, images: Any) -> Any:
        noise = torch.rand(len(images)).tolist()
        return [{k: v + n for k, v in row.items()} for row, n in zip(super().__call__(images), noise, strict=True)]


class Painter(Good):
    def __call__(self, images: Any) -> Any:
        rows = super().__call__(images)
        for image in images:
            image.putpixel((0, 0), (image.getpixel((0, 0)) + 1) % 256 if image.mode in "LP" else (1,) * len(image.mode))
        return rows


class Tensors(Good):
    def __call__(self, images: Any) -> Any:
        return [{k: torch.tensor(v) for k, v in row.items()} for row in super().__call__(images)]


class Points(Good):
    def locate(self, images: Any, labels: Any, grid: Any) -> Any:
        return np.ones((len(images), *grid), bool)


def test_a_judge_that_keeps_the_contract() -> None:
    assert check_judge(Good()).ok


@pytest.mark.parametrize(
    ("judge", "check"),
    [
        (Unlisted, "labels"), (Short, "one-per-image"), (NeedsOne, "no-image"), (Relative, "images-independent"),
        (Moody, "deterministic"), (Moody, "no-global-random"), (Painter, "inputs-unchanged"),
        (Tensors, "one-per-image"), (Points, "locate"),
    ],
)  # fmt: skip
def test_a_judge_that_breaks_it_is_caught(judge: Any, check: str) -> None:
    assert check in failed(check_judge, judge())


def test_the_pictures_differ_in_size_and_mode() -> None:
    images = pictures()
    assert {image.mode for image in images} == {"RGB", "L", "RGBA", "P"}
    assert len({image.size for image in images}) > 2
    assert [image.tobytes() for image in pictures()] == [image.tobytes() for image in images]
