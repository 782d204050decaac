"""Taps: seated on whatever processor is there, refused where nothing can be seen."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from runner import Runner

import uvr_core
from uvr_plugins.detectors import Oracle


def one_masked() -> np.ndarray:
    """Masks of three samples, the first and last empty."""
    mask = np.zeros((3, 8, 8), bool)
    mask[1, 2:5, 3:6] = True
    return mask


def test_fused_projections_after_attach_are_still_regulated(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy="block"):
        regulated = runner.run()
        runner.pipe.transformer.fuse_qkv_projections()
        fused = runner.run()
        runner.pipe.transformer.unfuse_qkv_projections()
    np.testing.assert_allclose(fused, regulated, atol=2e-5)


def test_a_replaced_processor_is_seated_again_and_survives_detach(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    attention = runner.pipe.transformer.transformer_blocks[0].attn
    reg = uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy="block")
    regulated = runner.run()
    mine = FluxAttnProcessor()
    attention.processor = mine
    assert np.array_equal(runner.run(), regulated)
    reg.detach()
    assert attention.processor is mine


def test_a_processor_made_anew_from_the_class_of_a_seated_one_is_seated_once(
    runner: Runner, bank: uvr_core.ConceptBank
) -> None:
    """As load_ip_adapter does with the processors of single-stream blocks."""
    attention = runner.pipe.transformer.transformer_blocks[0].attn
    stock = type(attention.processor)
    reg = uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy="block")
    regulated = runner.run()
    attention.processor = type(attention.processor)()
    assert np.array_equal(runner.run(), regulated)
    reg.detach()
    assert type(attention.processor) is stock


def test_an_unknown_processor_is_refused_by_name(runner: Runner) -> None:
    class Opaque:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):  # type: ignore[no-untyped-def]
            return hidden_states

    attention = runner.pipe.transformer.transformer_blocks[1].attn
    stock, attention.processor = attention.processor, Opaque()
    with pytest.raises(uvr_core.UnsupportedRuntime, match=r"transformer_blocks\.1\.attn.*Opaque"):
        uvr_core.attach(runner.pipe)
    assert not hasattr(type(runner.pipe.transformer.transformer_blocks[0].attn.processor), "_uvr_taps")
    attention.processor = stock
