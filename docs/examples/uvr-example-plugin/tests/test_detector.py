"""head-max against a plain loop, where it differs from a mean over heads, and the contract."""

from __future__ import annotations

import pytest
import torch
from uvr_example_plugin.detector import HeadMax

from uvr_core import ConceptBank, ConceptMismatch, Fingerprint
from uvr_core.testing import check_detector

HEADS, SIZE, PROBE = 4, 8, "transformer_blocks.0.attn"
SIGMAS = torch.tensor([1.0, 0.6, 0.2])


@pytest.fixture
def bank() -> ConceptBank:
    """Directions at three noise levels."""
    direction = torch.randn(3, HEADS * SIZE, generator=torch.Generator().manual_seed(0))
    tensors = {f"direction/{PROBE}": direction, "sigma": SIGMAS}
    return ConceptBank("x", Fingerprint("AnyTransformer", 1, HEADS, SIZE), tensors)


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(3, 6, HEADS * SIZE, generator=torch.Generator().manual_seed(1))


def score(features: torch.Tensor, bank: ConceptBank, sigma: float = 0.6) -> torch.Tensor:
    return HeadMax().scores(features, sigma, bank, PROBE)


@pytest.mark.parametrize(("sigma", "level"), [(0.9, 0), (0.55, 1), (0.0, 2)])
def test_it_is_what_the_docstring_says(bank: ConceptBank, features: torch.Tensor, sigma: float, level: int) -> None:
    scores = score(features, bank, sigma)
    direction = bank.tensor("direction", PROBE)[level].reshape(HEADS, SIZE).double()
    for sample in range(3):
        outputs = features[sample].reshape(6, HEADS, SIZE).double()
        for patch in range(6):
            apart = outputs[patch] - outputs.mean(0)
            cosines = [float(o @ d / (o.norm() * d.norm())) for o, d in zip(apart, direction, strict=True)]
            assert scores[sample, patch].item() == pytest.approx(max(cosines), abs=1e-6)


def test_how_loud_a_head_is_does_not_matter(bank: ConceptBank, features: torch.Tensor) -> None:
    louder = features.unflatten(-1, (HEADS, SIZE)) * torch.tensor([0.01, 1.0, 100.0, 3.0])[:, None]
    torch.testing.assert_close(score(louder.flatten(-2), bank), score(features, bank), atol=1e-5, rtol=1e-5)


def test_what_all_patches_share_does_not_matter(bank: ConceptBank, features: torch.Tensor) -> None:
    shared = torch.randn(HEADS * SIZE, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(score(features + 3 * shared, bank), score(features, bank), atol=1e-5, rtol=1e-5)
    assert score(shared.expand(1, 5, -1), bank).abs().max() < 1e-3


def test_one_head_suffices_where_the_mean_over_heads_is_misled(bank: ConceptBank) -> None:
    """Patch 0 carries the concept in head 2 alone; patch 1 is loud in every head and half like it; 2 and 3 balance."""
    direction = torch.nn.functional.normalize(bank.tensor("direction", PROBE)[1].reshape(HEADS, SIZE), dim=-1)
    across = torch.randn(HEADS, SIZE, generator=torch.Generator().manual_seed(3))
    across -= (across * direction).sum(-1, keepdim=True) * direction
    across = torch.nn.functional.normalize(across, dim=-1)
    alone = torch.where(torch.arange(HEADS)[:, None] == 2, direction, -0.2 * direction)
    loud = 10 * (direction + 1.7 * across)
    features = torch.stack([alone, loud, -alone, -loud]).flatten(1)[None]
    mine = score(features, bank)[0]
    mean_over_heads = features[0] @ bank.tensor("direction", PROBE)[1]
    assert mine[0] > 0.99 > 0.6 > mine[1]
    assert mean_over_heads[0] < mean_over_heads[1]


def test_in_an_editing_model_the_patch_speaks_for_itself(bank: ConceptBank, features: torch.Tensor) -> None:
    """Channels of the facing reference token follow the patch's own, in features and, perhaps, in the bank."""
    facing = torch.randn(features.shape, generator=torch.Generator().manual_seed(4))
    both = torch.cat([features, facing], -1)
    direction = bank.tensor("direction", PROBE)
    wide = ConceptBank("x", bank.fingerprint, {**bank.tensors, f"direction/{PROBE}": direction.repeat(1, 2)})
    assert torch.equal(score(both, bank), score(features, bank))
    assert torch.equal(score(both, wide), score(features, bank))


def test_a_bank_without_the_probe_is_refused(bank: ConceptBank, features: torch.Tensor) -> None:
    with pytest.raises(ConceptMismatch, match="elsewhere"):
        HeadMax().scores(features, 0.5, bank, "elsewhere")


def test_the_contract() -> None:
    check_detector(HeadMax())
