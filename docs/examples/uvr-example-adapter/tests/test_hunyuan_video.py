"""The adapter against a tiny HunyuanVideo with random weights: taps, spans, time, guidance, and nothing left behind."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from uvr_example_adapter.hunyuan_video import HUNYUAN_VIDEO, layout, sigma

import uvr_core
from uvr_core.protocols import MaskOptions, NoiseBlend
from uvr_core.testing import Example, check_adapter

TAPS = ("transformer_blocks.0.attn", "transformer_blocks.1.attn", "single_transformer_blocks.0.attn")
TEXT = 16


def tiny() -> HunyuanVideoTransformer3DModel:
    torch.manual_seed(0)
    return HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_single_layers=1,
        num_refiner_layers=1, text_embed_dim=8, pooled_projection_dim=8, rope_axes_dim=(4, 6, 6),
    ).eval()  # fmt: skip


@pytest.fixture
def model() -> HunyuanVideoTransformer3DModel:
    return tiny()


def inputs(grid: tuple[int, int], text: int = TEXT, t: float = 1000.0, batch: int = 2) -> dict[str, Any]:
    """Of the transformer's forward, for a grid of (rows, columns) patches at time t."""
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 4, 1, grid[0] * 2, grid[1] * 2, generator=generator),
        "timestep": torch.full((batch,), t),
        "encoder_hidden_states": torch.randn(batch, text, 8, generator=generator),
        "encoder_attention_mask": torch.ones(batch, text),
        "pooled_projections": torch.zeros(batch, 8),
        "guidance": torch.full((batch,), 6000.0),
    }


def predict(model: HunyuanVideoTransformer3DModel, **arguments: Any) -> torch.Tensor:
    """(B, C, 1, H, W)"""
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


def bank(tap: str = TAPS[0]) -> uvr_core.ConceptBank:
    """A concept that is located in the attention output of that block."""
    fingerprint = uvr_core.Fingerprint("HunyuanVideoTransformer3DModel", len(TAPS), 2, 16)
    return uvr_core.ConceptBank("x", fingerprint, {f"anchors/{tap}": torch.ones(1, 32)})


def test_it_is_recognised_and_every_tap_fires(model: HunyuanVideoTransformer3DModel) -> None:
    stock = predict(model, **inputs((4, 6)))
    with uvr_core.attach(model) as reg:
        assert reg.adapter is HUNYUAN_VIDEO
        assert reg.taps == TAPS
        assert reg.fingerprint == bank().fingerprint
        assert torch.equal(predict(model, **inputs((4, 6))), stock)
        assert reg.report.fired == len(TAPS)


@pytest.mark.parametrize("patches", [(0, 0), (5, 18), (23, 6)])
@pytest.mark.parametrize("text", [3, TEXT])
def test_the_image_span_by_perturbation(
    model: HunyuanVideoTransformer3DModel, patches: tuple[int, int], text: int
) -> None:
    """Behind the last block's attention no token sees another: the patch whose row is replaced moves, and no other."""
    height, width = 4, 6
    arguments = inputs((height, width), text)
    stock = predict(model, **arguments)
    regulated = uvr_core.attach(model, concepts=bank(TAPS[-1]), detector=OnePatch(patches), policy=Noise())
    with regulated as reg, reg.generation():
        moved = (predict(model, **arguments) - stock).abs().amax((1, 2))  # (B, H, W)
    per_patch = moved.unflatten(1, (height, 2)).unflatten(3, (width, 2)).amax((2, 4)).flatten(1)
    for sample, patch in enumerate(patches):
        assert per_patch[sample].nonzero().flatten().tolist() == [patch]


def test_layout_and_time(model: HunyuanVideoTransformer3DModel) -> None:
    assert layout({"self": model, **inputs((4, 6))}) == uvr_core.Layout((4, 6))
    assert sigma({"timestep": torch.tensor([1000.0, 250.0, 0.0])}).tolist() == [1.0, 0.25, 0.0]


def test_a_video_of_several_frames_is_refused(model: HunyuanVideoTransformer3DModel) -> None:
    arguments = inputs((4, 6))
    arguments["hidden_states"] = arguments["hidden_states"].expand(-1, -1, 3, -1, -1)
    with uvr_core.attach(model), pytest.raises(uvr_core.AdapterMismatch, match="got 3 frames: pass num_frames=1"):
        predict(model, **arguments)


def test_arguments_given_by_position_are_read_too(model: HunyuanVideoTransformer3DModel) -> None:
    arguments = inputs((4, 6))
    with uvr_core.attach(model, concepts=bank(), detector=OnePatch((0, 1)), policy="block") as reg:
        with reg.generation(), torch.no_grad():
            model(*arguments.values())
        assert reg.report.fired == len(TAPS)


def pipeline_of(model: HunyuanVideoTransformer3DModel) -> HunyuanVideoPipeline:
    """A pipeline around the model. Prompts are given as embeddings, so it needs no text encoder."""
    parts = {"text_encoder": None, "tokenizer": None, "text_encoder_2": None, "tokenizer_2": None, "vae": None}
    pipe = HunyuanVideoPipeline(transformer=model, scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(model: HunyuanVideoTransformer3DModel) -> HunyuanVideoPipeline:
    return pipeline_of(model)


def embedded(*prompts: str) -> torch.Tensor:
    """(prompts, TEXT, 8): another text, other numbers."""
    generators = [torch.Generator().manual_seed(zlib.crc32(prompt.encode())) for prompt in prompts]
    return torch.stack([torch.randn(TEXT, 8, generator=generator) for generator in generators])


def draw(
    pipe: HunyuanVideoPipeline, guidance: float, prompts: Sequence[str] = ("a cat", "a dog"), negative: str = ""
) -> torch.Tensor:
    """Latents (prompts, 4, 1, 8, 12) after 3 steps."""
    texts = {"prompt_embeds": embedded(*prompts), "negative_prompt_embeds": embedded(*[negative] * len(prompts))}
    masks = {
        f"{name.removesuffix('_embeds')}_attention_mask": torch.ones(text.shape[:2]) for name, text in texts.items()
    }
    pooled = torch.zeros(len(prompts), 8)
    return pipe(
        **texts, **masks, pooled_prompt_embeds=pooled, negative_pooled_prompt_embeds=pooled, height=64, width=96,
        num_frames=1, num_inference_steps=3, true_cfg_scale=guidance, output_type="latent",
        generator=[torch.Generator().manual_seed(n) for n in range(len(prompts))],
    ).frames  # fmt: skip


@pytest.mark.parametrize(("guidance", "passes"), [(1.0, 1), (3.0, 2)])
def test_every_tap_fires_in_every_pass_of_a_pipeline(pipe: HunyuanVideoPipeline, guidance: float, passes: int) -> None:
    stock = draw(pipe, guidance)
    with uvr_core.attach(pipe) as reg:
        assert torch.equal(draw(pipe, guidance), stock)
    assert reg.report.fired == len(TAPS) * 3 * passes
    assert reg.report.steps == 3


def test_only_the_conditional_pass_is_regulated(
    pipe: HunyuanVideoPipeline, model: HunyuanVideoTransformer3DModel
) -> None:
    seen: list[tuple[float, torch.Tensor]] = []
    hook = model.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    draw(pipe, 3.0)
    stock = seen[:]
    seen.clear()
    with uvr_core.attach(pipe, concepts=bank(), detector=OnePatch((0, 1)), policy="block"):
        draw(pipe, 3.0)
    hook.remove()
    assert not torch.equal(seen[0], stock[0])
    assert torch.equal(seen[1], stock[1])


def test_detach_leaves_the_stock_model_bitwise(
    pipe: HunyuanVideoPipeline, model: HunyuanVideoTransformer3DModel
) -> None:
    stock, keys = draw(pipe, 3.0), list(model.state_dict())
    processors = [model.get_submodule(tap).processor for tap in TAPS]
    reg = uvr_core.attach(pipe, concepts=bank(), detector=OnePatch((0, 1)), policy="block")
    assert not torch.equal(draw(pipe, 3.0), stock)
    reg.detach()
    reg.detach()
    assert torch.equal(draw(pipe, 3.0), stock)
    assert type(pipe) is HunyuanVideoPipeline
    assert list(model.state_dict()) == keys
    assert [model.get_submodule(tap).processor for tap in TAPS] == processors
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

    assert check_adapter(HUNYUAN_VIDEO, example)["guidance"].status == "passed"


def test_the_adapter_is_registered() -> None:
    registry = uvr_core.plugins.registry()
    assert registry.get("adapter", "hunyuan-video") is HUNYUAN_VIDEO
    assert registry.origin("example-adapter").distribution == "uvr-example-adapter"
