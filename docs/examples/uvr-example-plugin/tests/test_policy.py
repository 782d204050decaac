"""fade: how the restriction depends on the noise level, and what it does inside a real transformer."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from diffusers import FluxTransformer2DModel
from uvr_example_plugin.policy import Fade

import uvr_core
from uvr_core import CallInfo, Located, Policy
from uvr_core.protocols import MaskOptions, RowClass
from uvr_core.testing import check_policy

PROBE = "single_transformer_blocks.0.attn"  # the last block: what is restricted there reaches no other patch
CALL = CallInfo(PROBE, text=4, reference=0, text_contrast=lambda: torch.ones(1, 4))


def located(sigma: float) -> Located:
    core = torch.tensor([[True, False, False, False]])
    ring = torch.tensor([[False, True, False, False]])
    return Located(core, ring, (2, 2), sigma, step=0)


def test_the_weight_rises_with_the_noise_and_is_flat_outside_the_fade() -> None:
    policy = Fade(full=0.8, none=0.2)
    weights = [policy.weight(sigma / 100) for sigma in range(101)]
    assert weights == sorted(weights)
    assert set(weights[:21]) == {0.0}
    assert set(weights[80:]) == {1.0}
    assert policy.weight(0.5) == pytest.approx(0.5)
    assert policy.weight(0.35) == pytest.approx(0.15625)  # a quarter of the way: 1/16 * (3 - 1/2)


def test_factors_of_core_and_ring() -> None:
    policy = Fade(strong=0.2, full=0.8, none=0.2)
    edit = policy.edit(located(0.9), CALL)
    assert edit is not None
    assert edit.rows.tolist() == [[RowClass.CORE, RowClass.RING, RowClass.STOCK, RowClass.STOCK]]
    assert edit.reweight is not None
    assert attrs.astuple(edit.reweight.core) == pytest.approx((0.2, 1.0, 1.0, 0.2))  # text, safe, located, reference
    assert attrs.astuple(edit.reweight.ring) == pytest.approx((0.6, 1.0, 1.0, 0.6))
    half = policy.edit(located(0.5), CALL)
    assert half is not None
    assert half.reweight is not None
    assert attrs.astuple(half.reweight.core) == pytest.approx((0.6, 1.0, 1.0, 0.6))
    assert policy.edit(located(0.2), CALL) is None


@pytest.mark.parametrize("wrong", [{"strong": -0.1}, {"full": 1.1}, {"none": 0.7, "full": 0.7}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="|".join(wrong)):
        Fade(**wrong)


class First:
    """A detector that finds the concept in patch 0 of every image."""

    threshold = 0.5

    def scores(self, features: torch.Tensor, sigma: float, bank: object, probe: str) -> torch.Tensor:
        scores = torch.zeros(features.shape[:2])
        scores[:, 0] = 1
        return scores


@pytest.fixture
def model() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(2, 2, 4),
    ).eval()  # fmt: skip


def forward(model: FluxTransformer2DModel, sigma: float) -> torch.Tensor:
    """The prediction (1, 16, 4) on 4 x 4 patches at one noise level."""
    generator = torch.Generator().manual_seed(3)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(1, 16, 4, generator=generator),
        "encoder_hidden_states": torch.randn(1, 5, 16, generator=generator),
        "pooled_projections": torch.randn(1, 16, generator=generator),
        "timestep": torch.tensor([sigma]),
        "img_ids": torch.stack([torch.zeros(4, 4), rows, columns], -1).reshape(16, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    with torch.no_grad():
        return model(**inputs).sample


def test_inside_a_transformer_the_restriction_fades_and_ends_bitwise_stock(model: FluxTransformer2DModel) -> None:
    bank = uvr_core.ConceptBank(
        "x", uvr_core.Fingerprint("FluxTransformer2DModel", 2, 2, 8), {f"anchors/{PROBE}": torch.ones(1, 16)}
    )
    levels = (1.0, 0.5, 0.05)

    def run(policy: Policy | str) -> torch.Tensor:
        with uvr_core.attach(model, concepts=bank, detector=First(), policy=policy) as reg, reg.generation():
            return torch.cat([forward(model, sigma) for sigma in levels])  # (levels, 16, 4)

    stock = torch.cat([forward(model, sigma) for sigma in levels])
    faded, cut = run(Fade(full=0.9, none=0.1)), run("block")
    torch.testing.assert_close(faded[0, 0], cut[0, 0])  # the core at full restriction
    for other in (stock, cut):
        assert (faded[1, 0] - other[1, 0]).abs().max() > 1e-4  # in the fade
    assert torch.equal(faded[2], stock[2])  # below it
    assert not torch.equal(faded[0, 1], stock[0, 1])  # the ring
    assert torch.equal(faded[0, 6:], stock[0, 6:])  # far from it; later steps restrict the block before, too
    assert torch.equal(torch.cat([forward(model, sigma) for sigma in levels]), stock)


@pytest.mark.parametrize("policy", [Fade(), Fade(strong=0.3, full=1.0, none=0.0, masks=MaskOptions(ring=2))])
def test_the_contract(policy: Fade) -> None:
    check_policy(policy)


def test_the_names_are_registered() -> None:
    registry = uvr_core.plugins.registry()
    assert registry.origin("example-plugin").distribution == "uvr-example-plugin"
    assert isinstance(registry.get("policy", "fade")(), uvr_core.Policy)
    assert isinstance(registry.get("detector", "head-max")(), uvr_core.Detector)
