"""Images and findings of a run whose images are partly drawn again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from uvr_core.engine.redraw import Earlier
from uvr_core.engine.report import Finding, Report
from uvr_core.engine.withhold import Refusal

CORE = np.zeros((1, 2), bool)


def report(policy: str, samples: int = 3) -> Report:
    each = [Finding(i, "x", "d", policy, True, 1.0, 0.0, 0, 1, 2, CORE, standing=i == 1) for i in range(samples)]
    return Report("regulate", 2, 1, 1, 2, tuple(each))


def earlier(result: Any = None, refusals: dict[int, Refusal] | None = None) -> Earlier:
    return Earlier(result, report("first"), refusals or {}, frozenset({1}), {"x": CORE})


@pytest.mark.parametrize("made", [list, np.array, torch.tensor])
@pytest.mark.parametrize("as_tuple", [False, True])
def test_only_the_pending_images_are_replaced(made: Any, as_tuple: bool) -> None:
    before, after = made([0, 1, 2]), made([10, 11, 12])
    if as_tuple:
        merged = earlier((before, "x")).merged((after, "y"))
        images, rest = merged
        assert rest == "y"
    else:
        images = earlier(SimpleNamespace(images=before)).merged(SimpleNamespace(images=after)).images
    assert type(images) is type(before)
    assert [int(image) for image in images] == [0, 11, 2]
    assert [int(image) for image in before] == [0, 1, 2]


@pytest.mark.parametrize("made", [list, np.array, torch.tensor])
def test_a_result_that_is_the_images_stays_one(made: Any) -> None:
    merged = earlier(made([0, 1, 2])).merged(made([10, 11, 12]))
    assert type(merged) is type(made([0]))
    assert [int(image) for image in merged] == [0, 11, 2]


def test_findings_are_those_of_the_run_that_drew_the_image() -> None:
    told = earlier().told(report("second"))
    assert [f.policy for f in told.findings] == ["first", "second", "first"]
    assert told.draws == 2
    looked = attrs.evolve(earlier(), report=attrs.evolve(report("first"), looks=1))
    assert looked.told(report("second")).looks == 1  # the second draw knew the sources
    again = attrs.evolve(earlier(), report=told)
    assert again.told(report("third")).draws == 3


def test_refusals_of_images_that_were_not_drawn_again_stay() -> None:
    old, new, stray = (Refusal(name, 1) for name in ("old", "new", "stray"))
    assert earlier(refusals={0: old}).refused({1: new, 2: stray}) == {0: old, 1: new}
