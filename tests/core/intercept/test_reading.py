"""A layout stands as long as nothing that the adapter asked for is another, and no longer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest
import torch
from runner import Runner
from torch import nn

import uvr_core
from uvr_adapters.flux import FLUX
from uvr_core.adapter import Adapter, Layout
from uvr_core.errors import UVRError
from uvr_core.intercept.reading import Reader


def adapter(layout: Callable[[Mapping[str, Any]], Layout | None]) -> tuple[Adapter, list[int]]:
    """An adapter that counts how often its layout is asked for."""
    asked: list[int] = []

    def counted(arguments: Mapping[str, Any]) -> Layout | None:
        asked.append(1)
        return layout(arguments)

    made = Adapter(
        name="counted", model="Model", attention=("blocks.*",), layout=counted, time=lambda a: a["t"], image_at="end",
        guidance="single",
    )  # fmt: skip
    return made, asked


def by_rows(arguments: Mapping[str, Any]) -> Layout:
    return Layout((int(arguments["ids"].max()), 1))


def test_positions_are_read_once_while_they_stay_as_they_are() -> None:
    counted, asked = adapter(by_rows)
    reader, ids = Reader(), torch.tensor([1, 4])
    for step in range(3):  # latents and noise level are others in every step
        arguments = {"x": torch.randn(2), "t": torch.full((1,), 1 - step / 4), "ids": ids}
        reading = reader.read(counted, arguments)
        assert reading.layout == Layout((4, 1))
        assert reading.sigma is arguments["t"]
    assert len(asked) == 1


def test_what_was_written_or_replaced_is_read_anew() -> None:
    counted, asked = adapter(by_rows)
    reader, ids, t = Reader(), torch.tensor([1, 4]), torch.ones(1)
    assert reader.read(counted, {"ids": ids, "t": t}).layout == Layout((4, 1))
    ids[0] = 7
    assert reader.read(counted, {"ids": ids, "t": t}).layout == Layout((7, 1))
    assert reader.read(counted, {"ids": ids + 1, "t": t}).layout == Layout((8, 1))
    del ids
    for size in range(2, 20):  # a tensor that is gone may leave its address to another
        assert reader.read(counted, {"ids": torch.tensor([size]), "t": t}).layout == Layout((size, 1))
    assert len(asked) == 21


@pytest.mark.parametrize(
    ("layout", "first", "second"),
    [
        (lambda a: Layout((len(list(a)), 1)), {"t": 1}, {"t": 1, "more": 2}),
        (lambda a: Layout((len(a), 1)), {"t": 1}, {"t": 1, "more": 2}),
        (lambda a: Layout((a["shapes"][0], 1)), {"t": 1, "shapes": (shapes := [3])}, {"t": 1, "shapes": shapes}),
        (lambda a: Layout((a.get("rows", 5), 1)), {"t": 1}, {"t": 1, "rows": 6}),
        (lambda a: Layout((2 if "rows" in a else 1, 1)), {"t": 1}, {"t": 1, "rows": 6}),
        (lambda a: Layout((a["rows"], 1)), {"t": 1, "rows": 5}, {"t": 1, "rows": 6}),
        (lambda a: Layout((1 if a["rows"] is True else 2, 1)), {"t": 1, "rows": True}, {"t": 1, "rows": 1}),
    ],
    ids=["all-names", "number", "a-list", "absent", "absent-asked", "number-changed", "type-changed"],
)
def test_whatever_else_is_asked_for_is_told_apart(
    layout: Callable[[Mapping[str, Any]], Layout], first: dict[str, Any], second: dict[str, Any]
) -> None:
    counted, _ = adapter(layout)
    reader = Reader()
    assert reader.read(counted, first).layout == layout(first)
    if isinstance(second.get("shapes"), list):
        second["shapes"][0] = 9
    assert reader.read(counted, second).layout == layout(second)


def test_tensors_that_count_no_versions_are_read_every_time() -> None:
    counted, asked = adapter(by_rows)
    reader = Reader()
    with torch.inference_mode():
        ids = torch.tensor([1, 4])
        for row in (5, 6):
            ids[0] = row
            assert reader.read(counted, {"ids": ids, "t": torch.ones(1)}).layout == Layout((row, 1))
    assert len(asked) == 2


def test_the_module_is_known_by_itself_and_nothing_is_kept_alive() -> None:
    counted, asked = adapter(lambda a: Layout((a["self"].out_features, a["x"].shape[0])))
    reader, one, two, x = Reader(), nn.Linear(2, 3), nn.Linear(2, 4), torch.zeros(2)
    for module in (one, one, two):
        assert reader.read(counted, {"self": module, "x": x, "t": 1}).layout == Layout((module.out_features, 2))
    assert len(asked) == 2
    latents = torch.zeros(3)
    reader.read(counted, {"self": two, "x": latents, "t": 1})
    gone = weakref.ref(latents)
    del latents
    assert gone() is None


def test_a_forward_that_draws_nothing_is_told_from_one_that_does() -> None:
    counted, _ = adapter(lambda a: None if a["aside"] else Layout((2, 2)))
    reader = Reader()
    for aside in (True, False, True):
        assert (reader.read(counted, {"aside": aside, "t": torch.ones(1)}).layout is None) is aside


def test_flux_is_read_once_a_run_and_positions_that_change_inside_are_refused(
    runner: Runner, bank: uvr_core.ConceptBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    counted = attrs.evolve(FLUX, layout=lambda arguments: (asked.append(1), FLUX.layout(arguments))[1])
    with uvr_core.attach(runner.pipe, concepts=bank, threshold=9.0) as reg:
        monkeypatch.setattr(reg._interceptor.forwards, "_adapter", counted)
        runner.run(num_inference_steps=4)
    assert len(asked) == 1
    ids = []
    forward = runner.pipe.transformer.forward

    def noting(*args: Any, **kwargs: Any) -> Any:
        ids.append(kwargs["img_ids"])
        return forward(*args, **kwargs)

    def swapped(pipe: Any, step: int, time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        ids[-1].copy_(ids[-1][..., [0, 2, 1]])
        return kwargs

    monkeypatch.setattr(runner.pipe.transformer, "forward", noting)
    with uvr_core.attach(runner.pipe, concepts=bank, threshold=9.0), pytest.raises(UVRError):
        runner.run(num_inference_steps=4, height=32, width=48, callback_on_step_end=swapped)
