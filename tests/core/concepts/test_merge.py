"""Renaming keeps all; merging averages scores, and drops what was chosen for one bank alone."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
import torch
from runner import PROBE, make_bank

from uvr_core import ConceptBank, ConceptMismatch, Fingerprint, load_concepts
from uvr_core.concepts import merge, rename


def another(images: int = 4, seed: int = 9) -> ConceptBank:
    bank = make_bank("b")
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        key: value if key == "sigma" else torch.randn(value.shape, generator=generator)
        for key, value in bank.tensors.items()
    }
    return attrs.evolve(bank, tensors=tensors, provenance={"images_with_concept": images, "prompts": 8})


def with_images(count: int) -> ConceptBank:
    return attrs.evolve(make_bank("a"), provenance={"images_with_concept": count, "prompts": 16, "measured": {"x": 1}})


def score(bank: ConceptBank, features: torch.Tensor) -> torch.Tensor:
    return features @ bank.tensor("direction", PROBE)[1] + bank.tensor("offset", PROBE)[1]


def test_a_renamed_bank_is_the_same_but_for_its_name(tmp_path) -> None:
    bank = make_bank("a")
    twice = load_concepts(rename(rename(bank, "b"), "c").save(tmp_path / "c.safetensors"))
    assert twice.name == "c"
    assert twice.provenance == {"seed": 7, "renamed_from": ["a", "b"]}
    assert twice.calibration == bank.calibration
    assert twice.digest == bank.digest
    with pytest.raises(ConceptMismatch, match="name"):
        rename(bank, "a\nb")


def test_a_merged_score_is_the_weighted_mean_of_the_scores(tmp_path) -> None:
    one, other = with_images(12), another(4)
    bank = load_concepts(merge([one, other], "both").save(tmp_path / "x.safetensors"))
    features = torch.randn(6, bank.width, generator=torch.Generator().manual_seed(1))
    expected = 0.75 * score(one, features) + 0.25 * score(other, features)
    torch.testing.assert_close(score(bank, features), expected)
    anchors = bank.tensor("anchors", PROBE)
    assert torch.equal(anchors, torch.cat([one.tensor("anchors", PROBE), other.tensor("anchors", PROBE)]))


def test_what_was_chosen_for_one_alone_is_dropped_and_where_it_came_from_kept() -> None:
    one, other = with_images(12), another(4)
    bank = merge([one, other], "both")
    assert bank.calibration is None
    assert bank.verification is None
    made = bank.provenance
    assert "measured" not in made
    assert (made["images_with_concept"], made["prompts"]) == (16, 24)
    assert made["merged_from"] == [f"{part.name} (tensors sha256 {part.digest})" for part in (one, other)]
    assert made["parts"] == [one.provenance, other.provenance]


def test_banks_that_do_not_say_how_much_they_saw_count_alike() -> None:
    bank = merge([make_bank("a"), attrs.evolve(another(), provenance={})], "both")
    mean = (make_bank().tensor("direction", PROBE) + another().tensor("direction", PROBE)) / 2
    torch.testing.assert_close(bank.tensor("direction", PROBE), mean)


def without(bank: ConceptBank, key: str) -> ConceptBank:
    return attrs.evolve(bank, tensors={k: v for k, v in bank.tensors.items() if k != key})


def test_what_not_all_have_is_left_out() -> None:
    bank = merge([make_bank("a"), without(another(), f"direction/{PROBE}")], "both")
    assert f"direction/{PROBE}" not in bank.tensors
    assert f"anchors/{PROBE}" in bank.tensors


def moved(bank: ConceptBank) -> ConceptBank:
    """The same tensors, of another block."""
    tensors = {key.replace(PROBE, "single_transformer_blocks.1.attn"): value for key, value in bank.tensors.items()}
    return attrs.evolve(bank, tensors=tensors)


@pytest.mark.parametrize(
    ("banks", "message"),
    [
        ([make_bank("a")], "two concept files or more, got 1"),
        ([make_bank("a"), make_bank("b", heads=1, head_dim=32)], "made for another model: heads 1"),
        (
            [make_bank("a"), attrs.evolve(make_bank("b"), fingerprint=Fingerprint("Other", 4, 2, 16))],
            "made for another model: model 'Other'",
        ),
        ([make_bank("a"), moved(make_bank("b"))], "no block in common"),
        (
            [
                make_bank("a"),
                attrs.evolve(make_bank("b"), tensors={**make_bank().tensors, "sigma": torch.tensor([1.0, 0.7, 0.5])}),
            ],
            "other noise levels",
        ),
        (
            [
                make_bank("a"),
                attrs.evolve(make_bank("b"), tensors={**make_bank().tensors, f"direction/{PROBE}": torch.zeros(3, 64)}),
            ],
            "collected with source images, some without",
        ),
    ],
)
def test_what_does_not_belong_together(banks: Sequence[ConceptBank], message: str) -> None:
    with pytest.raises(ConceptMismatch, match=message):
        merge(banks, "both")
