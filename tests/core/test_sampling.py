"""Sampling: the arguments of each call, the same pictures as a loop by hand, and what a regulator withholds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rig import Rig
from runner import Runner

import uvr_core
from uvr_core import UnsafeContent, UVRError
from uvr_core.sampling import Sampling

CALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2}
PROMPTS = ["a cat", "a knife", "a dog", "a star", "a hat"]


def sampling(count: int = 5, size: int = 2, **more: Any) -> Sampling:
    return Sampling(PROMPTS[:count], range(7, 7 + count), call=CALL, batch_size=size, **more)


class Calls:
    """A pipeline that draws nothing and keeps what it was called with."""

    def __init__(self, surplus: int = 0) -> None:
        self.calls: list[dict[str, Any]] = []
        self.surplus = surplus

    def __call__(self, **arguments: Any) -> Any:
        self.calls.append(arguments)
        return SimpleNamespace(images=[*arguments["prompt"], *["more"] * self.surplus])


def test_every_image_has_its_prompt_seed_and_values() -> None:
    pipe = Calls()
    one = Sampling(
        PROMPTS, [5, 4, 3, 2, 1], {"image": tuple("abcde"), "prompt_2": "vwxyz", "mask": None}, {"steps": 9}, 2
    )
    assert [drawn.first for drawn in one.draw(pipe)] == [0, 2, 4]
    assert [call["prompt"] for call in pipe.calls] == [["a cat", "a knife"], ["a dog", "a star"], ["a hat"]]
    assert [call["image"] for call in pipe.calls] == [["a", "b"], ["c", "d"], ["e"]]
    assert [call["prompt_2"] for call in pipe.calls] == [["v", "w"], ["x", "y"], ["z"]]
    assert [g.initial_seed() for call in pipe.calls for g in call["generator"]] == [5, 4, 3, 2, 1]
    assert {call["steps"] for call in pipe.calls} == {9}
    assert all("mask" not in call and "negative_prompt" not in call for call in pipe.calls)


@pytest.mark.parametrize(
    ("given", "passed"), [("", ["", ""]), ("blurred", ["blurred"] * 2), (["x"], ["x"]), (None, None)]
)
def test_a_negative_prompt_is_given_once_for_every_image(given: Any, passed: Any) -> None:
    one = Sampling(PROMPTS, range(5), call={"negative_prompt": given}, batch_size=2)
    assert one.arguments(slice(0, 2))["negative_prompt"] == passed
    assert one.call["negative_prompt"] == given


def test_generators_are_fresh_in_every_call() -> None:
    one = sampling()
    first, again = (one.arguments(slice(0, 2))["generator"] for _ in range(2))
    torch.rand(1, generator=first[0])
    assert torch.equal(torch.rand(1, generator=again[0]), torch.rand(1, generator=torch.Generator().manual_seed(7)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": range(4)}, "seeds: expected one per prompt, got 4 for 5 prompts"),
        ({"seeds": range(5), "per_image": {"image": "ab"}}, "source images: expected one per prompt, got 2 for 5"),
        ({"seeds": range(5), "per_image": {"prompt_2": "ab"}}, "prompt_2: expected one per prompt, got 2 for 5"),
        ({"seeds": range(5), "batch_size": 0}, r"batch_size: expected a whole number from 1 to \d+, got 0"),
    ],
)
def test_numbers_that_do_not_match_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UVRError, match=message):
        Sampling(PROMPTS, **options)


def test_another_number_of_images_is_refused() -> None:
    with pytest.raises(UVRError, match="expected one image per prompt, got 3 for 2 prompts"):
        next(sampling().draw(Calls(surplus=1)))


def test_nothing_is_drawn_without_prompts_and_before_it_is_asked_for() -> None:
    pipe = Calls()
    assert list(Sampling([], []).draw(pipe)) == []
    drawing = sampling().draw(pipe)
    assert pipe.calls == []
    next(drawing)
    assert len(pipe.calls) == 1


def test_progress_is_told_when_a_batch_is_done_with() -> None:
    said: list[int] = []
    counts = []
    for _ in sampling().draw(Calls(), progress=said.append):
        counts.append(sum(said))
    assert counts == [0, 2, 4]
    assert said == [2, 2, 1]


def test_pictures_are_those_of_a_loop_by_hand(runner: Runner) -> None:
    pipe = runner.pipe
    by_hand = []
    for start in (0, 2):
        noise = [torch.Generator().manual_seed(7 + start + i) for i in range(len(PROMPTS[start : min(start + 2, 3)]))]
        by_hand += pipe(PROMPTS[start : min(start + 2, 3)], generator=noise, **CALL).images
    drawn = list(sampling(3).draw(pipe))
    assert all(np.array_equal(a, b) for a, b in zip(by_hand, (i for d in drawn for i in d.images), strict=True))
    assert all(d.report is None and d.grid is None and d.seconds > 0 for d in drawn)


def test_an_attached_regulator_reports_every_batch_and_stays(runner: Runner) -> None:
    with uvr_core.attach(runner.pipe) as reg:
        drawn = list(sampling(3).draw(runner.pipe, reg))
        assert reg.attached
    assert [d.grid for d in drawn] == [(8, 8), (8, 8)]
    assert [d.report.posture for d in drawn if d.report is not None] == ["observe"] * 2
    assert drawn[0].report is not drawn[1].report


def test_a_context_is_entered_and_left_for_every_batch(runner: Runner) -> None:
    events: list[Any] = []

    @contextmanager
    def around(batch: slice) -> Iterator[uvr_core.Regulator]:
        events.append(batch)
        with uvr_core.attach(runner.pipe) as reg:
            yield reg
        events.append("left")

    for drawn in sampling(3).draw(runner.pipe, around):
        events.append(drawn.first)
        assert drawn.report is not None
    assert events == [slice(0, 2), "left", 0, slice(2, 3), "left", 2]


@pytest.mark.parametrize("where", ["function", "attached"])
def test_an_image_that_is_withheld_is_none_and_its_neighbour_is_there(where: str) -> None:
    rig = Rig("flux")  # its detector locates in the last sample alone
    one = Sampling(["a cat", "a knife"], [40, 41], call=CALL, batch_size=2)
    if where == "function":
        (drawn,) = one.draw(rig.pipe, lambda batch: rig.attach(policy="refuse"))
    else:
        with rig.attach(policy="refuse") as reg:
            (drawn,) = one.draw(rig.pipe, reg)
    assert drawn.images[0] is not None
    assert drawn.images[1] is None
    assert drawn.report is not None
    assert drawn.report.refused == (1,)


def test_a_batch_that_is_withheld_as_a_whole_has_a_report_too() -> None:
    rig = Rig("flux")
    one = Sampling(["a cat", "a knife"], [40, 41], call=CALL, batch_size=1)  # each is the last of its batch
    with rig.attach(detector=_Everywhere(), policy="refuse") as reg:
        drawn = list(one.draw(rig.pipe, reg))
    assert [d.images for d in drawn] == [[None], [None]]
    assert [d.report.posture for d in drawn if d.report is not None] == ["refused"] * 2


class _Everywhere:
    name, threshold = "everywhere", 0.0

    def scores(self, features: torch.Tensor, sigma: float, bank: uvr_core.ConceptBank, probe: str) -> torch.Tensor:
        return torch.ones(features.shape[:2])


def test_what_stock_raises_is_raised() -> None:
    def pipe(**arguments: Any) -> Any:
        raise UnsafeContent("not by us")

    with pytest.raises(UnsafeContent, match="not by us"):
        next(sampling().draw(pipe))
