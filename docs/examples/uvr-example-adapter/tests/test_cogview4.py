"""The adapter against a tiny CogView4 with random weights: taps, spans, time, guidance, and nothing left behind."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
from uvr_example_adapter.cogview4 import COGVIEW4, layout, sigma

import uvr_core
from uvr_core.protocols import MaskOptions, NoiseBlend
from uvr_core.testing import Example, check_adapter

LAYERS, TEXT = 3, 16


def tiny() -> CogView4Transformer2DModel:
    torch.manual_seed(0)
    return CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=LAYERS, attention_head_dim=16, num_attention_heads=2,
        text_embed_dim=8, time_embed_dim=16, condition_dim=4, pos_embed_max_size=16, sample_size=16,
        rope_axes_dim=(16, 16),
    ).eval()  # fmt: skip


@pytest.fixture
def model() -> CogView4Transformer2DModel:
    return tiny()


def inputs(grid: tuple[int, int], text: int = TEXT, t: float = 1000.0, batch: int = 2) -> dict[str, Any]:
    """Of the transformer's forward, for a grid of (rows, columns) patches at time t."""
    generator = torch.Generator().manual_seed(1)
    size = torch.tensor([[grid[0] * 8.0, grid[1] * 8.0]]).repeat(batch, 1)
    return {
        "hidden_states": torch.randn(batch, 4, grid[0] * 2, grid[1] * 2, generator=generator),
        "encoder_hidden_states": torch.randn(batch, text, 8, generator=generator),
        "timestep": torch.full((batch,), t),
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros(batch, 2),
    }


def predict(model: CogView4Transformer2DModel, **arguments: Any) -> torch.Tensor:
    """(B, C, H, W)"""
    with torch.no_grad():
        return model(**arguments).sample


class OnePatch:
    """A detector that finds the concept in one patch of each image, as told."""

    threshold = 0.5

    def __init__(self, patches: Sequence[int]):
        self.patches = patches

    def scores(self, features: torch.Tensor, sigma: float, bank: object, probe: str) -> torch.Tensor:
        scores = torch.zeros(features.shape[:2])
        scores[torch.arange(len(self.patches)), torch.tensor(self.patches)] = 1
        return scores


class Noise:
    """A policy that replaces the located rows, and nothing around them, by noise."""

    masks = MaskOptions(ring=0)

    def edit(self, located: uvr_core.Located, call: uvr_core.CallInfo) -> uvr_core.FlowEdit:
        return uvr_core.FlowEdit(located.core.long(), noise=NoiseBlend(core=1.0, kind="unit"))


def bank(block: int) -> uvr_core.ConceptBank:
    """A concept that is located in the attention output of that block."""
    fingerprint = uvr_core.Fingerprint("CogView4Transformer2DModel", LAYERS, 2, 16)
    return uvr_core.ConceptBank("x", fingerprint, {f"anchors/transformer_blocks.{block}.attn1": torch.ones(1, 32)})


def test_it_is_recognised_and_every_tap_fires(model: CogView4Transformer2DModel) -> None:
    stock = predict(model, **inputs((4, 6)))
    with uvr_core.attach(model) as reg:
        assert reg.adapter is COGVIEW4
        assert reg.taps == tuple(f"transformer_blocks.{n}.attn1" for n in range(LAYERS))
        assert reg.fingerprint == bank(0).fingerprint
        assert torch.equal(predict(model, **inputs((4, 6))), stock)
        assert reg.report.fired == LAYERS


@pytest.mark.parametrize("patches", [(0, 0), (5, 18), (23, 6)])
@pytest.mark.parametrize("text", [3, TEXT])
def test_the_image_span_by_perturbation(model: CogView4Transformer2DModel, patches: tuple[int, int], text: int) -> None:
    """Behind the last block's attention no token sees another: the patch whose row is replaced moves, and no other."""
    height, width = 4, 6
    arguments = inputs((height, width), text)
    stock = predict(model, **arguments)
    regulated = uvr_core.attach(model, concepts=bank(LAYERS - 1), detector=OnePatch(patches), policy=Noise())
    with regulated as reg, reg.generation():
        moved = (predict(model, **arguments) - stock).abs().amax(1)  # (B, H, W)
    per_patch = moved.unflatten(1, (height, 2)).unflatten(3, (width, 2)).amax((2, 4)).flatten(1)
    for sample, patch in enumerate(patches):
        assert per_patch[sample].nonzero().flatten().tolist() == [patch]


def test_layout_and_time(model: CogView4Transformer2DModel) -> None:
    assert layout({"self": model, **inputs((4, 6))}) == uvr_core.Layout((4, 6))
    assert sigma({"timestep": torch.tensor([1000.0, 250.0, 0.0])}).tolist() == [1.0, 0.25, 0.0]


def test_arguments_given_by_position_are_read_too(model: CogView4Transformer2DModel) -> None:
    arguments = inputs((4, 6))
    with uvr_core.attach(model, concepts=bank(0), detector=OnePatch((0, 1)), policy="block") as reg:
        with reg.generation(), torch.no_grad():
            model(*arguments.values())
        assert reg.report.fired == LAYERS


def pipeline_of(model: CogView4Transformer2DModel) -> CogView4Pipeline:
    """A pipeline around the model. Prompts are given as embeddings, so it needs no text encoder."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4,
        mid_block_add_attention=False,
    ).eval()  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"
    )
    pipe = CogView4Pipeline(tokenizer=None, text_encoder=None, vae=vae, transformer=model, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(model: CogView4Transformer2DModel) -> CogView4Pipeline:
    return pipeline_of(model)


def embedded(*prompts: str) -> torch.Tensor:
    """(prompts, TEXT, 8): another text, other numbers."""
    generators = [torch.Generator().manual_seed(zlib.crc32(prompt.encode())) for prompt in prompts]
    return torch.stack([torch.randn(TEXT, 8, generator=generator) for generator in generators])


def draw(
    pipe: CogView4Pipeline, guidance: float, prompts: Sequence[str] = ("a cat", "a dog"), negative: str = ""
) -> torch.Tensor:
    """Latents (prompts, 4, 8, 12) after 3 steps."""
    return pipe(
        prompt_embeds=embedded(*prompts), negative_prompt_embeds=embedded(*[negative] * len(prompts)), height=32,
        width=48, num_inference_steps=3, guidance_scale=guidance, output_type="latent",
        generator=[torch.Generator().manual_seed(n) for n in range(len(prompts))],
    ).images  # fmt: skip


@pytest.mark.parametrize(("guidance", "passes"), [(1.0, 1), (3.0, 2)])
def test_every_tap_fires_in_every_pass_of_a_pipeline(pipe: CogView4Pipeline, guidance: float, passes: int) -> None:
    stock = draw(pipe, guidance)
    with uvr_core.attach(pipe) as reg:
        assert torch.equal(draw(pipe, guidance), stock)
    assert reg.report.fired == LAYERS * 3 * passes
    assert reg.report.steps == 3


def test_only_the_conditional_pass_is_regulated(pipe: CogView4Pipeline, model: CogView4Transformer2DModel) -> None:
    seen: list[tuple[float, torch.Tensor]] = []
    hook = model.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    draw(pipe, 3.0)
    stock = seen[:]
    seen.clear()
    with uvr_core.attach(pipe, concepts=bank(0), detector=OnePatch((0, 1)), policy="block"):
        draw(pipe, 3.0)
    hook.remove()
    assert not torch.equal(seen[0], stock[0])
    assert torch.equal(seen[1], stock[1])


def test_detach_leaves_the_stock_model_bitwise(pipe: CogView4Pipeline, model: CogView4Transformer2DModel) -> None:
    stock, keys = draw(pipe, 3.0), list(model.state_dict())
    processors = [block.attn1.processor for block in model.transformer_blocks]
    reg = uvr_core.attach(pipe, concepts=bank(0), detector=OnePatch((0, 1)), policy="block")
    assert not torch.equal(draw(pipe, 3.0), stock)
    reg.detach()
    reg.detach()
    assert torch.equal(draw(pipe, 3.0), stock)
    assert type(pipe) is CogView4Pipeline
    assert list(model.state_dict()) == keys
    assert [block.attn1.processor for block in model.transformer_blocks] == processors
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("real", [False, True])
def test_the_contract(real: bool) -> None:
    """uvr-core's own checks; guidance on passes as the adapter declares them, and on the real pipeline."""

    def example() -> Example:
        model = tiny()

        def arguments(height: int, width: int, batch: int = 1, sigma: float = 0.5) -> dict[str, Any]:
            fixed = inputs((height, width), t=1000 * sigma, batch=batch)
            drawn = ("hidden_states", "encoder_hidden_states")
            return fixed | {name: torch.randn_like(fixed[name]) for name in drawn}

        if not real:
            return Example(model, arguments, guidance="two_pass")
        pipe = pipeline_of(model)

        def generate(prompt: str, negative: str) -> torch.Tensor:
            return draw(pipe, 3.0, [prompt], negative)

        return Example(model, arguments, pipeline=pipe, generate=generate)

    assert check_adapter(COGVIEW4, example)["guidance"].status == "passed"


def test_the_adapter_is_registered() -> None:
    registry = uvr_core.plugins.registry()
    assert registry.get("adapter", "cogview4") is COGVIEW4
    assert registry.origin("example-adapter").distribution == "uvr-example-adapter"
