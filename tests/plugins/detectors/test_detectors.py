"""The built-in detectors against their equations, computed here by hand in float64."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch
from runner import PROBE, make_bank
from torch import Tensor

from uvr_core import ConceptBank, ConceptMismatch, UVRError
from uvr_core.protocols import Detector
from uvr_plugins.detectors import Anchor, AnchorCosine, ConceptToken, Contrast, Oracle


@pytest.fixture(scope="module")
def features() -> Tensor:
    return torch.randn(3, 20, 32, generator=torch.Generator().manual_seed(3)) * 4


@pytest.fixture
def bank() -> ConceptBank:  # bins 1.0, 0.8, 0.5; 5 anchors of width 32
    bank = make_bank()
    bank.tensors[f"offset/{PROBE}"] = torch.tensor([0.5, -2.0, 7.0])
    bank.tensors[f"token/{PROBE}"] = torch.randn(3, 32, generator=torch.Generator().manual_seed(4))
    return bank


def test_anchor_is_the_mean_dot_product_over_the_width(features: Tensor, bank: ConceptBank) -> None:
    anchors = bank.tensor("anchors", PROBE).double().numpy()
    o = features.double().numpy()
    expected = np.mean([o @ a for a in anchors], axis=0) / 32
    np.testing.assert_allclose(Anchor().scores(features, 0.9, bank, PROBE), expected, atol=1e-5)


def test_anchor_cosine_is_the_angle_to_the_mean_anchor(features: Tensor, bank: ConceptBank) -> None:
    mean = bank.tensor("anchors", PROBE).double().numpy().mean(0)
    o = features.double().numpy()
    expected = o @ mean / (np.linalg.norm(o, axis=-1) * np.linalg.norm(mean))
    scores = AnchorCosine().scores(features, 0.9, bank, PROBE)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_allclose(AnchorCosine().scores(features * 7, 0.9, bank, PROBE), scores, atol=1e-5)


@pytest.mark.parametrize(("sigma", "index"), [(1.0, 0), (0.91, 0), (0.89, 1), (0.64, 2), (0.0, 2)])
def test_contrast_uses_the_nearest_noise_level(features: Tensor, bank: ConceptBank, sigma: float, index: int) -> None:
    direction = bank.tensor("direction", PROBE)[index].double().numpy()
    expected = features.double().numpy() @ direction + (0.5, -2.0, 7.0)[index]
    np.testing.assert_allclose(Contrast().scores(features, sigma, bank, PROBE), expected, atol=1e-4)


@pytest.mark.parametrize(("sigma", "index"), [(1.0, 0), (0.91, 0), (0.89, 1), (0.64, 2), (0.0, 2)])
def test_concept_token_is_the_cosine_above_the_pictures_mean(
    features: Tensor, bank: ConceptBank, sigma: float, index: int
) -> None:
    token, o = bank.tensor("token", PROBE)[index].double().numpy(), features.double().numpy()
    cosine = o @ token / (np.linalg.norm(o, axis=-1) * np.linalg.norm(token))
    expected = cosine - cosine.mean(-1, keepdims=True)
    scores = ConceptToken().scores(features, sigma, bank, PROBE)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    with_reference = torch.cat([features, features.flip(1)], -1)  # editing: the facing token plays no part
    np.testing.assert_allclose(ConceptToken().scores(with_reference, sigma, bank, PROBE), expected, atol=1e-5)


def test_concept_token_says_so_when_the_bank_has_no_token(features: Tensor) -> None:
    with pytest.raises(ConceptMismatch, match=r"concept 'x' has no text token for probe .*collect it again"):
        ConceptToken().scores(features, 0.9, make_bank(), PROBE)


@pytest.mark.parametrize("detector", [Anchor(), AnchorCosine(), Contrast(), ConceptToken()])
def test_scores_are_float32_per_sample_and_take_half_precision(
    features: Tensor, bank: ConceptBank, detector: Detector
) -> None:
    scores = detector.scores(features, 0.7, bank, PROBE)
    assert scores.shape == (3, 20)
    assert scores.dtype == torch.float32
    alone = detector.scores(features[1:2], 0.7, bank, PROBE)
    np.testing.assert_allclose(alone[0], scores[1], atol=1e-5)
    half = attrs.evolve(bank, tensors={k: v.half() for k, v in bank.tensors.items()})
    np.testing.assert_allclose(detector.scores(features, 0.7, half, PROBE), scores, atol=0.05)


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 20)])
def test_oracle_gives_back_its_masks(features: Tensor, bank: ConceptBank, shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.5
    scores = Oracle(mask).scores(features, 0.9, bank, PROBE)
    assert torch.equal(scores, torch.where(torch.from_numpy(mask).reshape(3, 20), torch.inf, -torch.inf))
    assert not torch.isnan(scores).any()


@pytest.mark.parametrize("masks", [np.zeros((2, 20), bool), np.zeros((3, 19), bool), np.zeros((3, 4, 4), bool)])
def test_oracle_refuses_masks_of_another_shape(features: Tensor, bank: ConceptBank, masks: np.ndarray) -> None:
    with pytest.raises(UVRError, match=r"expected \(3, 20\) \(images, patches\), got"):
        Oracle(masks).scores(features, 0.9, bank, PROBE)


def test_oracle_without_masks_says_what_it_needs(features: Tensor, bank: ConceptBank) -> None:
    with pytest.raises(UVRError, match="needs its masks"):
        Oracle().scores(features, 0.9, bank, PROBE)
