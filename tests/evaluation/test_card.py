"""The card of a concept file: what it says, with counts, and nothing that a file could slip into it."""

from __future__ import annotations

import attrs
import pytest
import yaml
from runner import make_bank

from uvr_core import ConceptBank
from uvr_evaluation.card import calibration_rates, card, counted
from uvr_evaluation.statistics import rate

MEASURED = {
    "judge": "nudenet",
    "threshold": 0.6,
    "shown": rate(30, 32),
    "erased": rate(29, 30),
    "located": rate(31, 32),
    "false_located": rate(1, 64),
    "time": 1.2,
}


@pytest.fixture
def bank() -> ConceptBank:
    bank = make_bank("weapon")
    measured = {"recall": 0.9, "unsafe_prompts": 50, "false_positive": 0.0, "benign_prompts": 100, "steps": 18}
    calibration = attrs.evolve(bank.calibration, measured={**measured, "of_steps": 20})
    made = {"recipe_sha256": "ab" * 32, "measured": MEASURED, "model": "owner/flux", "mask_source": "words"}
    return attrs.evolve(bank, calibration=calibration, provenance=made)


def header(text: str) -> dict:
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


def test_what_a_card_says(bank: ConceptBank) -> None:
    text = card(bank, "weapon.safetensors", licence="mit", place="a/b:weapon.safetensors@COMMIT", sha256="cd" * 32)
    assert header(text) == {
        "library_name": "uvr",
        "base_model": "owner/flux",
        "license": "mit",
        "tags": ["uvr", "safety", "FluxTransformer2DModel"],
    }
    for line in (
        "| erased, of these | 29 of 30 | 83.3% to 99.4% |",
        "| falsely located, of benign prompts | 1 of 64 | 0.3% to 8.3% |",
        "Counted by nudenet, threshold 0.6",
        "| located, of the prompts that ask for it | 45 of 50 | 78.6% to 95.7% |",
        "| falsely located, of benign prompts | 0 of 100 | 0.0% to 3.7% |",
        f"recipe: sha256 {'ab' * 32}",
        f"file: sha256 {'cd' * 32}",
        "looked for in 18 of 20",
        'concepts="a/b:weapon.safetensors@COMMIT"',
        "## Dual use",
    ):
        assert line in text, text


def test_a_bank_that_nobody_measured_says_so(bank: ConceptBank) -> None:
    text = card(attrs.evolve(bank, provenance={}), "weapon.safetensors", base_model="owner/flux")
    assert "## Not measured" in text
    assert "recipe: none" in text
    assert "license" not in header(text)
    for odd in ({"erased": "well"}, None, {**MEASURED, "erased": {"hits": 9, "of": 3}}, {**MEASURED, "erased": 1}):
        assert counted(odd) is None
    lying = {**MEASURED, "erased": {"hits": 1, "of": 2, "rate": 1.0, "ci95": [0.99, 1.0]}}
    assert counted(lying)["erased"] == rate(1, 2)


def test_a_file_slips_nothing_into_its_card(bank: ConceptBank) -> None:
    evil = "x\n---\n# Verified by all <script>|`"
    made = {**bank.provenance, "mask_source": evil, "model": evil, "measured": {**MEASURED, "judge": evil}}
    text = card(attrs.evolve(bank, provenance=made), "weapon.safetensors")
    assert header(text)["library_name"] == "uvr"
    assert "<script>" not in text
    assert "\n# Verified" not in text
    assert "base_model" not in header(text)


def test_counts_are_made_of_the_shares_of_a_calibration() -> None:
    rates = calibration_rates({"recall": 1.0, "unsafe_prompts": 96, "false_positive": 0.00625, "benign_prompts": 160})
    assert list(rates.values()) == [rate(96, 96), rate(1, 160)]
    assert calibration_rates({}) == {}
