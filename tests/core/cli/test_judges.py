"""Judges as options name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from commands import registered

from uvr_core import PluginError
from uvr_core.cli.judges import JudgeSpec, threshold_of, with_threshold


@attrs.frozen
class Told:
    model: str = "its own"
    labels: tuple[str, ...] = ("anything",)
    threshold: float = 0.5

    def __call__(self, images: Sequence[Any]) -> list[dict[str, float]]:
        if self.model == "none":
            raise FileNotFoundError("none")
        return [dict.fromkeys(self.labels, 1.0) for _ in images]


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("told", JudgeSpec("told")),
        ("told=folder/x", JudgeSpec("told", "folder/x")),
        ("told:knife, pistol ,", JudgeSpec("told", None, ("knife", "pistol"))),
        ("told=owner/name:knife", JudgeSpec("told", "owner/name", ("knife",))),
    ],
)
def test_a_text_names_judge_model_and_labels(text: str, spec: JudgeSpec) -> None:
    assert JudgeSpec.of(text) == spec


def test_it_is_made_as_it_was_told() -> None:
    with registered(uvr_judges={"told": Told, "plain": lambda: Told()}):
        assert JudgeSpec.of("told").asked() == Told()
        assert JudgeSpec.of("told=x:knife").asked(threshold=0.2) == Told("x", ("knife",), 0.2)
        assert JudgeSpec.of("plain").asked() == Told()
        with pytest.raises(PluginError, match="'plain' takes no model"):
            JudgeSpec.of("plain=x").make()
        with pytest.raises(PluginError, match="'plain' takes no labels"):
            JudgeSpec.of("plain:knife").asked()
        with pytest.raises(PluginError, match="'told' cannot be asked: FileNotFoundError: none"):
            JudgeSpec.of("told=none").asked()
        with pytest.raises(PluginError, match=r"unknown judge 'tol'.*did you mean 'told'"):
            JudgeSpec.of("tol=x").check()


def test_a_threshold_is_said_where_there_is_one() -> None:
    assert with_threshold("told", threshold_of(Told(threshold=0.65))) == "told (threshold 0.65)"
    assert with_threshold("len", threshold_of(len)) == "len"
