"""Checks of a model that an adapter recognises, and of a draft for one that none does."""

from __future__ import annotations

import inspect
from typing import Any

import attrs
import diffusers
import pytest
from conformance import SD3

from uvr_core.doctor.checkup import check_up, draft_for, failed
from uvr_core.testing import Example
from uvr_core.testing.tiny import tiny_example

pytestmark = pytest.mark.usefixtures("one_thread")

CLASS = diffusers.SD3Transformer2DModel


def test_a_model_that_fits() -> None:
    facts = check_up(SD3, None, CLASS, {})
    assert list(facts) == ["fingerprint", "taps", "probes", "routes", "checks"]
    assert [tap["path"] for tap in facts["taps"]] == ["transformer_blocks.0.attn", "transformer_blocks.1.attn"]
    assert facts["fingerprint"]["model"] == CLASS.__name__
    assert failed(facts["checks"]) == []


def test_an_example_by_hand_is_held_against_the_adapter() -> None:
    asked: list[Example] = []

    def by_hand() -> Example:
        asked.append(attrs.evolve(tiny_example(CLASS), sizes=((4, 2),)))
        return asked[-1]

    facts = check_up(SD3, None, CLASS, {}, by_hand)
    assert failed(facts["checks"]) == []
    assert len(asked) > len(facts["checks"]) / 2
    assert [route["name"] for route in facts["routes"]] == ["pooled text"]


def test_an_adapter_that_does_not_fit() -> None:
    facts = check_up(attrs.evolve(SD3, guidance="batched:cu"), None, CLASS, {})
    assert failed(facts["checks"]) == ["guidance", "guidance-parts"]


def test_a_model_of_which_no_small_version_runs() -> None:
    facts = check_up(SD3, None, diffusers.HunyuanDiT2DModel, {})
    assert list(facts) == ["checks"]
    assert failed(facts["checks"]) == ["small-version"]


def test_a_draft_is_checked() -> None:
    drafted = draft_for(CLASS, {})
    assert "attention" in drafted["findings"]
    assert "SD3 = Adapter(" in drafted["draft"]
    assert failed(drafted["checks"]) == []
    assert drafted["findings"]["routes"] == ("pooled_projections",)


class Aside(CLASS):  # type: ignore[misc,valid-type]
    """SD3 that gives the picture the mean of the text beside its attention."""

    def forward(self, hidden_states: Any, encoder_hidden_states: Any = None, **options: Any) -> Any:
        mean = encoder_hidden_states.mean((1, 2))[:, None, None, None]
        return super().forward(hidden_states + mean, encoder_hidden_states, **options)

    forward.__signature__ = inspect.signature(CLASS.forward)  # type: ignore[attr-defined]


def test_text_that_goes_beside_the_attention_is_a_doubt() -> None:
    drafted = draft_for(Aside, {})
    assert failed(drafted["checks"]) == ["text-route"]
    assert "a module reads the text beside" in drafted["findings"]["unsure"]["routes"]
    assert "# TODO routes: a module reads the text beside (" in drafted["draft"]
