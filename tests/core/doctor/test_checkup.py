"""Checks of a model that an adapter recognises, and of a draft for one that none does."""

from __future__ import annotations

import attrs
import diffusers
import pytest
from conformance import SD3

from uvr_core.doctor.checkup import check_up, draft_for, failed

pytestmark = pytest.mark.usefixtures("one_thread")

CLASS = diffusers.SD3Transformer2DModel


def test_a_model_that_fits() -> None:
    facts = check_up(SD3, None, CLASS, {})
    assert list(facts) == ["fingerprint", "taps", "probes", "checks"]
    assert [tap["path"] for tap in facts["taps"]] == ["transformer_blocks.0.attn", "transformer_blocks.1.attn"]
    assert facts["fingerprint"]["model"] == CLASS.__name__
    assert failed(facts["checks"]) == []


def test_an_adapter_that_does_not_fit() -> None:
    facts = check_up(attrs.evolve(SD3, guidance="batched:cu"), None, CLASS, {})
    assert failed(facts["checks"]) == ["guidance"]


def test_a_model_of_which_no_small_version_runs() -> None:
    facts = check_up(SD3, None, diffusers.HunyuanDiT2DModel, {})
    assert list(facts) == ["checks"]
    assert failed(facts["checks"]) == ["small-version"]


def test_a_draft_is_checked() -> None:
    drafted = draft_for(CLASS, {})
    assert "attention" in drafted["findings"]
    assert "SD3 = Adapter(" in drafted["draft"]
    assert failed(drafted["checks"]) == []
