"""check_judge: a judge on harmless pictures."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image

from ..protocols import Judge
from .suite import Conformance, checks_of, expect, refuse_name, run_checks, skip_unless


def pictures() -> list[Image.Image]:
    """Harmless pictures of several sizes and modes: a ramp, noise, blocks, plain colours."""
    rng = np.random.default_rng(5)
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    blocks = np.kron(rng.integers(0, 256, (4, 3, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    noise = rng.integers(0, 256, (96, 64, 3), dtype=np.uint8)
    return [
        Image.fromarray(np.broadcast_to(ramp, (64, 64)).copy()).convert("RGB"),
        Image.fromarray(noise),
        Image.fromarray(blocks),
        Image.new("L", (40, 30), 90),
        Image.new("RGBA", (64, 64), (200, 120, 40, 128)),
        Image.fromarray(noise[:48, :48]).convert("P"),
    ]


def check_judge(
    judge: Judge,
    *,
    images: Sequence[Image.Image] | None = None,
    grids: Sequence[tuple[int, int]] = ((8, 8), (4, 4)),
    expected_failures: Mapping[str, str] | None = None,
) -> Conformance:
    """Hold a judge against the protocol.

    Args:
        judge: the judge, made.
        images: what to show it; None: `pictures()`. Give some in which it sees something, too.
        grids: (H, W) asked of `locate`, where it has one.
        expected_failures: {check: reason}. The checks: protocol, labels, one-per-image, no-image, images-independent,
            deterministic, inputs-unchanged, no-global-random, locate.

    Raises:
        ConformanceError: a check failed, or an expected failure did not; all are listed, and `report` holds them.
        UVRError: `expected_failures` names no check, or `judge` is a name or a class.
    """
    refuse_name("judge", judge)
    suite = _Suite(judge, list(images) if images is not None else pictures(), tuple(grids))
    name = getattr(judge, "name", type(judge).__name__)
    with torch.random.fork_rng(devices=[]):
        return run_checks(f"judge {name!r}", checks_of(suite), expected_failures)


@attrs.frozen(eq=False)
class _Suite:
    judge: Judge
    images: list[Image.Image]
    grids: tuple[tuple[int, int], ...]

    def protocol(self) -> None:
        expect(callable(self.judge), "the judge", expected="something callable", got=type(self.judge).__name__)
        labels = getattr(self.judge, "labels", None)
        if labels is not None:
            texts = not isinstance(labels, str) and all(isinstance(label, str) and label for label in labels)
            expect(texts, "labels", expected="text, one or more characters each, or none", got=repr(labels))
            once = len(set(labels)) == len(tuple(labels))
            expect(once, "labels", expected="each once", got=repr(labels))

    def labels(self) -> None:
        labels = getattr(self.judge, "labels", None)
        skip_unless(labels is not None, "the judge does not say what it can report (labels)")
        strange = {label for row in self.judge(self.images) for label in row} - set(labels or ())
        expect(not strange, "labels in its answers", expected=f"some of {tuple(labels or ())}", got=sorted(strange))

    def one_per_image(self) -> None:
        for count in (1, len(self.images)):
            rows = self.judge(self.images[:count])
            expect(isinstance(rows, Sequence), "answer", expected="a list", got=type(rows).__name__)
            expect(len(rows) == count, f"answers to {count} images", expected=count, got=len(rows))
            for index, row in enumerate(rows):
                expect(isinstance(row, Mapping), f"answer to image {index}", expected="{label: score}", got=repr(row))
                for label, score in row.items():
                    expect(isinstance(label, str), f"label of image {index}", expected="text", got=repr(label))
                    finite = isinstance(score, (int, float)) and np.isfinite(score)
                    expect(finite, f"score of {label!r}", expected="a finite number", got=repr(score))

    def no_image(self) -> None:
        expect(len(self.judge([])) == 0, "answers to no image", expected=0, got="some")

    def images_independent(self) -> None:
        together = self.judge(self.images)
        backwards = self.judge(self.images[::-1])[::-1]
        for index, image in enumerate(self.images):
            where = f"image {index} alone and among {len(self.images)}"
            _same(self.judge([image])[0], together[index], where)
            _same(backwards[index], together[index], f"image {index} in another order")

    def deterministic(self) -> None:
        runs = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            runs.append([dict(row) for row in self.judge(self.images)])
        expect(runs[0] == runs[1], "answers to the same images, twice", expected="the same", got="others")

    def inputs_unchanged(self) -> None:
        before = [(image.mode, image.size, image.tobytes()) for image in self.images]
        self.judge(self.images)
        changed = [i for i, im in enumerate(self.images) if (im.mode, im.size, im.tobytes()) != before[i]]
        expect(not changed, "images changed in place", expected="none", got=changed)

    def no_global_random(self) -> None:
        def state() -> Any:
            return torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]

        before = state()
        self.judge(self.images)
        got = "advanced: pictures drawn after judging would depend on it"
        expect(before == state(), "global random state", expected="unused", got=got)

    def locate(self) -> None:
        locate: Any = getattr(self.judge, "locate", None)
        skip_unless(locate is not None, "the judge does not locate")
        labels = list(getattr(self.judge, "labels", ()))
        skip_unless(labels, "the judge does not say what it can locate (labels)")
        for grid in self.grids:
            masks = np.asarray(locate(self.images, labels, grid))
            shape = (len(self.images), *grid)
            expect(masks.shape == shape, f"shape of locate on a grid of {grid}", expected=shape, got=masks.shape)
            expect(masks.dtype == np.bool_, "type of locate", expected="bool", got=masks.dtype)
            none = np.asarray(locate(self.images, [], grid))
            expect(not none.any(), "locate of no label", expected="no patch", got=f"{int(none.sum())} patches")


def _same(got: Mapping[str, float], expected: Mapping[str, float], where: str) -> None:
    close = got.keys() == expected.keys() and all(abs(got[k] - expected[k]) <= 1e-3 for k in got)
    expect(close, where, expected=dict(expected), got=dict(got))
